"""Trained agents: acting, evaluation, saving and loading."""

import dataclasses
import os
import pathlib
from typing import Any

import gymnasium
import numpy as np
import torch

from hogwild_rl.config import base, validation
from hogwild_rl.config.cli import print_line
from hogwild_rl.config.network import architecture
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ActionCodec, ObservationCodec, one_line
from hogwild_rl.errors import UserError
from hogwild_rl.models import layers
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.models.deterministic import DeterministicActorCritic
from hogwild_rl.runs.checkpoint import Checkpoint, load_newest

MAX_STEPS = 100_000  # of an episode in evaluations; the longest Atari game has 27,000
_DETERMINISTIC = ("ddpg", "td3")  # algorithms with a deterministic policy

Array = np.ndarray[Any, Any]


class Agent:
    """Trained policy with its checkpoint.

    Args:
        checkpoint: checkpoint of a run.
        env: training environment; default: the id in the checkpoint.
        run_dir: folder of the run, if known.
        network: function that makes the network's body, if one was used in training.
        allow_import: allow the import of a module that the checkpoint names as env module:Id.

    Attributes:
        checkpoint: parameters, optimizer state, counters and settings.
        run_dir: folder of the run, if known.

    Raises:
        UserError: the network function is not given, or the parts of the checkpoint do not fit
            each other.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        env: make.EnvSource | None = None,
        run_dir: pathlib.Path | None = None,
        network: layers.BodyMaker | None = None,
        allow_import: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.run_dir = run_dir
        self._env, self._allow_import = env, allow_import
        self._observations = ObservationCodec.of(checkpoint.observation_space)
        settings, deterministic = checkpoint.settings, checkpoint.algorithm in _DETERMINISTIC
        spaces = (checkpoint.observation_space, checkpoint.action_space)
        self.model: ActorCritic | DeterministicActorCritic
        with checkpoint.fitting():
            rescale = deterministic or settings["rescale_actions"]
            self._actions = ActionCodec.of(checkpoint.action_space, rescale)
            shape = architecture(settings, network)
            if deterministic:
                self.model = DeterministicActorCritic(*spaces, shape, settings.get("critics", 1))
            else:
                self.model = ActorCritic(*spaces, shape)
            self.model.load_state_dict(checkpoint.parameters)
            self._generator = torch.Generator().manual_seed(settings["seed"])
        self.model.requires_grad_(False).eval()

    def act(self, observation: Any, *, deterministic: bool = True) -> Any:
        """Returns the action for one observation, or actions for a batch; see `predict`.

        Raises:
            UserError: the observation is not in the space, or the policy is recurrent.
        """
        if self.model.state_size:
            raise UserError("this policy is recurrent: use predict, which also returns the state")
        return self.predict(observation, deterministic=deterministic)[0]

    def predict(
        self,
        observation: Any,
        state: Array | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Array, Array | None]:
        """Returns actions and next state, with the signature of Stable-Baselines3's predict.

        Args:
            observation: one observation, or a batch as from a vector environment.
            state: last returned state of a recurrent policy, [2, B, H]; None at first.
            episode_start: [B] bool, True where the state is reset.
            deterministic: True for the most likely action, False to sample.

        Returns:
            The action or batch of actions for the environment, and the next state.

        Raises:
            UserError: the observation is not in the space.
        """
        batched = self._observations.batched(observation)
        rows = self._observations.rows if batched else self._observations.row
        # C order, whatever the caller's: the CNN reads groups of four bytes.
        array = np.array(rows(observation), dtype=self._observations.dtype, order="C")
        observations = torch.from_numpy(array)
        observations = observations if batched else observations[None]
        h = torch.zeros(2, len(observations), self.model.state_size)
        if state is not None:
            h.copy_(torch.from_numpy(state))
        if episode_start is not None:
            h[:, torch.as_tensor(np.atleast_1d(episode_start), dtype=torch.bool)] = 0
        with torch.inference_mode():
            distribution, next_state = self.model.policy(observations, h)
            chosen = distribution.mode() if deterministic else distribution.sample(self._generator)
        actions = self._actions.to_env(chosen.numpy())
        if next_state is not None and self.model.state_size:
            state = next_state.numpy()
        return (actions if batched else actions[0]), state

    def seed(self, seed: int) -> None:
        """Seeds the generator of sampled actions."""
        self._generator.manual_seed(seed)

    def evaluate(
        self,
        episodes: int = 20,
        *,
        deterministic: bool = True,
        seed: int = 0,
        env: make.EnvSource | make.Env | None = None,
        max_steps: int = MAX_STEPS,
    ) -> Array:
        """Plays complete episodes and returns their undiscounted returns, [episodes].

        Args:
            episodes: number of episodes ≥ 1.
            deterministic: True for the most likely actions, False to sample.
            seed: seed of the environment and the sampled actions.
            env: environment; default: the training environment.
            max_steps: steps after which an episode is cut, with a warning.

        Raises:
            UserError: the environment cannot be made, or has other spaces.
        """
        return self.play(
            episodes, deterministic=deterministic, seed=seed, env=env, max_steps=max_steps
        ).returns

    def play(
        self,
        episodes: int,
        *,
        deterministic: bool = True,
        seed: int = 0,
        env: make.EnvSource | make.Env | None = None,
        max_steps: int = MAX_STEPS,
    ) -> "Episodes":
        """Plays complete episodes in sequence; see `evaluate`."""
        validation.at_least("episodes", episodes, 1)
        validation.at_least("max_steps", max_steps, 1)
        played = env if isinstance(env, gymnasium.Env) else self.make_env(env)
        try:
            self._check_spaces(played)
            self.seed(seed)
            returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
            for episode in range(episodes):
                observation, _ = played.reset(seed=seed if episode == 0 else None)
                ended, state = False, None
                while not ended and lengths[episode] < max_steps:
                    action, state = self.predict(observation, state, deterministic=deterministic)
                    observation, reward, terminated, truncated, _ = played.step(action)
                    returns[episode] += float(reward)
                    lengths[episode] += 1
                    ended = terminated or truncated
                if not ended:
                    print_line(
                        f"warning: episode {episode} was cut after {max_steps:,} steps: if it may "
                        "never end, give the environment a time limit (max_episode_steps)",
                        error=True,
                    )
        finally:
            if played is not env:
                played.close()
        return Episodes(returns, lengths)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves the agent to a file for `hogwild_rl.load`; missing folders are created.

        Raises:
            UserError: the file cannot be written.
        """
        file = pathlib.Path(path).expanduser()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self.checkpoint.save(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"agent cannot be saved to {path!r} ({reason}): name a file") from error

    def make_env(
        self, env: make.EnvSource | None = None, render_mode: str | None = None
    ) -> make.Env:
        """Makes the training environment, or another one.

        Raises:
            UserError: it cannot be made, or needs a module that only the checkpoint names and
                whose import is not allowed.
        """
        if env is not None:
            return make.make_env(env, render_mode)
        if (env := self._env) is None:
            env = self.checkpoint.settings.get("env")
            base.require_import_allowed(env, "the checkpoint", self._allow_import)
            assert env is not None
        like = (self.checkpoint.observation_space, self.checkpoint.action_space)
        return make.make_env(env, render_mode, like)

    def _check_spaces(self, env: make.Env) -> None:
        for name in ("observation_space", "action_space"):
            wanted, got = getattr(self.checkpoint, name), getattr(env, name, None)
            if wanted != got:
                raise UserError(
                    f"this agent's {name} is {one_line(wanted)}, the environment's is "
                    f"{one_line(got)}"
                )


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Undiscounted returns and lengths in steps of episodes, [episodes] each."""

    returns: Array
    lengths: Array


def load(
    path: str | os.PathLike[str],
    network: layers.BodyMaker | None = None,
    *,
    allow_import: bool = False,
) -> Agent:
    """Loads an agent from a file of `Agent.save`, or from a run's newest checkpoint.

    The file cannot run code unless allow_import is given.

    Args:
        path: file of an agent, or folder of a run.
        network: function that makes the network's body, if one was used in training.
        allow_import: allow the import of a module that the file names as env module:Id, when the
            agent is evaluated in its training environment.

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return Agent(Checkpoint.load(path), network=network, allow_import=allow_import)
    return Agent(load_newest(path)[0], run_dir=path, network=network, allow_import=allow_import)
