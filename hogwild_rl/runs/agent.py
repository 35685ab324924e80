"""A trained policy: acts, is evaluated, is saved and loaded."""

import dataclasses
import os
import pathlib
from typing import Any

import gymnasium
import numpy as np
import torch

from hogwild_rl.config import base, off_policy, policy
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ActionCodec, ObservationCodec, one_line
from hogwild_rl.errors import UserError
from hogwild_rl.models import layers
from hogwild_rl.runs.checkpoint import Checkpoint, load_newest

_DETERMINISTIC = ("ddpg", "td3")  # algorithms of a policy that names one action

Array = np.ndarray[Any, Any]


class Agent:
    """A trained policy with all that made it.

    Args:
        checkpoint: what `train` or `load` found.
        env: what it was trained on; by default the id in the checkpoint.
        run_dir: the run's folder, where it came from one.
        network: makes the network's body, where a function of the caller's made it in training.
        allow_import: lets the checkpoint name an environment module:Id, whose module is imported.

    Attributes:
        checkpoint: parameters, optimizer statistics, counters and settings.
        run_dir: the run's folder, where it came from one.

    Raises:
        UserError: the network is a function that is not given, or the parts of the checkpoint do
            not fit each other.
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
        with checkpoint.fitting():
            self._rebuild(checkpoint, network)
        self.model.requires_grad_(False).eval()

    def _rebuild(self, checkpoint: Checkpoint, network: layers.BodyMaker | None) -> None:
        settings = checkpoint.settings
        deterministic = checkpoint.algorithm in _DETERMINISTIC
        rescale = deterministic or settings["rescale_actions"]
        self._actions = ActionCodec.of(checkpoint.action_space, rescale)
        rebuild = off_policy.rebuilt if deterministic else policy.rebuilt
        spaces = (checkpoint.observation_space, checkpoint.action_space)
        self.model = rebuild(*spaces, settings, network)
        self.model.load_state_dict(checkpoint.parameters)
        self._generator = torch.Generator().manual_seed(settings["seed"])

    def act(self, observation: Any, *, deterministic: bool = True) -> Any:
        """The action for one observation, or actions for a batch of them.

        Raises:
            UserError: the observation is not one of the space, or the policy has a memory, whose
                state `predict` carries.
        """
        if self.model.state_size:
            raise UserError(
                "this policy has a memory: use predict, which takes and gives its state"
            )
        return self.predict(observation, deterministic=deterministic)[0]

    def predict(
        self,
        observation: Any,
        state: Array | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[Array, Array | None]:
        """Actions and next state, with the signature of a Stable-Baselines3 model.

        Args:
            observation: one observation, or a batch as vector environments give it.
            state: what a policy with a memory gave the last time, [2, B, H]; None at first.
            episode_start: [B] bool, where the state has to be forgotten.
            deterministic: the likeliest action; otherwise one is sampled.

        Returns:
            An action (or a batch of them) that the environment takes, and the next state.

        Raises:
            UserError: the observation is not one of the space.
        """
        batched = self._observations.batched(observation)
        rows = self._observations.rows if batched else self._observations.row
        # In C's order whatever the caller's: a CNN looks at bytes four at a time.
        given = np.array(rows(observation), dtype=self._observations.dtype, order="C")
        observations = torch.from_numpy(given)
        observations = observations if batched else observations[None]
        carried = torch.zeros(2, len(observations), self.model.state_size)
        if state is not None:
            carried.copy_(torch.from_numpy(state))
        if episode_start is not None:
            carried[:, torch.as_tensor(np.atleast_1d(episode_start), dtype=torch.bool)] = 0
        with torch.inference_mode():
            chosen, remembered = self.model.policy(observations, carried)
            taken = chosen.mode() if deterministic else chosen.sample(self._generator)
        actions = self._actions.to_env(taken.numpy())
        if remembered is not None and self.model.state_size:
            state = remembered.numpy()
        return (actions if batched else actions[0]), state

    def seed(self, seed: int) -> None:
        """Starts the stream of sampled actions anew."""
        self._generator.manual_seed(seed)

    def evaluate(
        self,
        episodes: int = 20,
        *,
        deterministic: bool = True,
        seed: int = 0,
        env: make.EnvSource | make.Env | None = None,
    ) -> Array:
        """Undiscounted returns of whole episodes, [episodes].

        Args:
            episodes: at least 1.
            deterministic: the likeliest actions; otherwise sampled ones.
            seed: of the environment and the sampled actions.
            env: where to play; by default where it was trained.

        Raises:
            UserError: the environment cannot be made, or has other spaces.
        """
        return self.play(episodes, deterministic=deterministic, seed=seed, env=env).returns

    def play(
        self,
        episodes: int,
        *,
        deterministic: bool = True,
        seed: int = 0,
        env: make.EnvSource | make.Env | None = None,
    ) -> "Episodes":
        """Plays whole episodes, one after another; see `evaluate`."""
        if episodes < 1:
            raise UserError(f"episodes must be at least 1, got {episodes}")
        made = env if isinstance(env, gymnasium.Env) else self.make_env(env)
        try:
            self._check_spaces(made)
            self.seed(seed)
            returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
            for episode in range(episodes):
                observation, _ = made.reset(seed=seed if episode == 0 else None)
                ended, state = False, None
                while not ended:
                    action, state = self.predict(observation, state, deterministic=deterministic)
                    observation, reward, terminated, truncated, _ = made.step(action)
                    returns[episode] += float(reward)
                    lengths[episode] += 1
                    ended = terminated or truncated
        finally:
            if made is not env:
                made.close()
        return Episodes(returns, lengths)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the agent as one file, which `hogwild_rl.load` reads."""
        self.checkpoint.save(pathlib.Path(path))

    def make_env(
        self, env: make.EnvSource | None = None, render_mode: str | None = None
    ) -> make.Env:
        """The environment the agent was trained on, or another one.

        Raises:
            UserError: it cannot be made, or a module that only the checkpoint names would be
                imported, which has to be allowed.
        """
        env = env if env is not None else self._env
        if env is None:
            env = self.checkpoint.settings.get("env")
            base.require_import_allowed(env, "the checkpoint", self._allow_import)
            assert env is not None
        return make.make_env(env, render_mode)

    def _check_spaces(self, env: make.Env) -> None:
        for name in ("observation_space", "action_space"):
            wanted, got = getattr(self.checkpoint, name), getattr(env, name)
            if wanted != got:
                raise UserError(
                    f"this agent's {name} is {one_line(wanted)}, the environment's is "
                    f"{one_line(got)}"
                )


@dataclasses.dataclass(frozen=True)
class Episodes:
    """Undiscounted returns and lengths in steps of played episodes, [episodes] each."""

    returns: Array
    lengths: Array


def load(
    path: str | os.PathLike[str],
    network: layers.BodyMaker | None = None,
    *,
    allow_import: bool = False,
) -> Agent:
    """The agent in a file that `Agent.save` wrote, or of a run's newest checkpoint.

    Nothing in the file can run code, unless that is allowed.

    Args:
        path: a file, or the folder of a run.
        network: makes the network's body, where a function made it in training.
        allow_import: lets the file name an environment module:Id, whose module is imported when
            the agent is evaluated where it was trained.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        return Agent(Checkpoint.load(path), network=network, allow_import=allow_import)
    return Agent(load_newest(path)[0], run_dir=path, network=network, allow_import=allow_import)
