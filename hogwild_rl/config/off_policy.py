"""Settings of off-policy algorithms (DDPG, TD3)."""

import dataclasses
from typing import Annotated, Literal

import torch

from hogwild_rl.collect import replay
from hogwild_rl.collect.noise import Gaussian, Noise, OrnsteinUhlenbeck
from hogwild_rl.config import base, resources, validation
from hogwild_rl.config.network import NetworkConfig, architecture
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ActionCodec, Array, EnvCodec, ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.models.deterministic import DeterministicActorCritic

_ALL = -1  # gradient_steps: one update per new transition


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(NetworkConfig, base.DeviceConfig, base.HogwildConfig):
    """Settings of a deterministic policy trained from a replay buffer."""

    env: Annotated[make.EnvSource, base.ENV_FLAG] = "Pendulum-v1"
    """Environment: a registered id, module:Id or module:Class; from Python also a callable."""
    workers: int = 1
    """Actor-learners on one shared model, each with its own replay buffer; 1: as published."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the MLP's hidden layers."""
    activation: Literal["tanh", "relu"] = "relu"
    """Activation function of the hidden layers."""
    tau: float = 0.005
    """Polyak coefficient τ of the target networks' updates."""
    batch_size: int = 256
    """Transitions per minibatch."""
    buffer_size: int = 1_000_000
    """Capacity of the replay buffers in transitions, over all workers."""
    learning_starts: int = 1_000
    """Initial steps with random actions, over all workers."""
    train_every: int = 1
    """Steps of every environment between updates."""
    gradient_steps: int = 1
    """Updates at a time; -1: one per new transition."""
    noise: Literal["gaussian", "ou"] = "gaussian"
    """Exploration noise on actions: independent Gaussian, or correlated Ornstein-Uhlenbeck."""
    noise_std: float = 0.1
    """σ of the noise, in units of half an action's range."""
    ou_theta: float = 0.15
    """Mean-reversion rate θ of Ornstein-Uhlenbeck noise."""
    ou_dt: float = 0.01
    """Time step Δt of Ornstein-Uhlenbeck noise."""
    save_replay: bool = False
    """Save the replay buffer in the run folder with every checkpoint, for --resume."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("batch_size", "train_every"):
            validation.at_least(name, getattr(self, name), 1)
        validation.at_least("buffer_size", self.buffer_size, self.batch_size * self.workers)
        validation.at_least("learning_starts", self.learning_starts, 0)
        if self.gradient_steps != _ALL:
            validation.at_least("gradient_steps", self.gradient_steps, 1)
        validation.between("tau", self.tau, 0, 1)
        validation.between("noise_std", self.noise_std, 0, 1e9)
        for name in ("ou_theta", "ou_dt"):
            validation.above(name, getattr(self, name), 0)
        validation.between("ou_theta times ou_dt", self.ou_theta * self.ou_dt, 0, 1)
        if self.workers > 1 and self.device == "cuda":
            raise UserError(
                f"device cuda is for one worker, got workers {self.workers}: several workers share "
                "a model in CPU memory"
            )

    def updates_after(self, transitions: int) -> int:
        """Number of updates after this number of new transitions."""
        return transitions if self.gradient_steps == _ALL else self.gradient_steps

    def model(self, env_info: make.EnvInfo, critics: int) -> DeterministicActorCritic:
        """Builds the networks, with initial weights of the run's seed.

        Raises:
            UserError: they do not fit the spaces or into memory.
        """
        self.check_size(env_info)
        return DeterministicActorCritic(
            env_info.observation_space,
            env_info.action_space,
            architecture(vars(self)),
            critics,
            torch.Generator().manual_seed(self.seed),
        )

    def env_codec(self, env_info: make.EnvInfo) -> EnvCodec:
        """Codec between the policy, whose actions lie in [−1, 1], and its environments."""
        return EnvCodec(
            ObservationCodec.of(env_info.observation_space),
            ActionCodec.of(env_info.action_space, rescale=True),
            rewards=self._scale_ if self.scales_rewards else None,
        )

    def _scale_(self, rewards: Array, ended: Array, valid: Array) -> None:
        del ended, valid
        rewards *= self.reward_scale

    def normalization(self, env_info: make.EnvInfo) -> Normalization:
        """Normalization without running moments: observations and rewards are unchanged."""
        codec = ObservationCodec.of(env_info.observation_space)
        return Normalization(self.workers, codec, observations=False, rewards=False)

    def replay(self, env_codec: EnvCodec) -> replay.ReplayBuffer:
        """Replay buffer of one worker."""
        return replay.ReplayBuffer(
            self.buffer_size // self.workers, self.envs_per_worker, env_codec
        )

    def explore(self, env_codec: EnvCodec, generator: torch.Generator) -> Noise:
        """Exploration noise of one worker."""
        B, A = self.envs_per_worker, env_codec.actions.shape[0]
        if self.noise == "gaussian":
            return Gaussian(B, A, self.noise_std, generator)
        return OrnsteinUhlenbeck(B, A, self.noise_std, self.ou_theta, self.ou_dt, generator)

    def check_memory(self, env_codec: EnvCodec) -> str:
        """Size of all replay buffers, for messages; UserError if it is more than is free."""
        capacity = self.buffer_size // self.workers
        needed = self.workers * replay.size_in_bytes(capacity, self.envs_per_worker, env_codec)
        what = f"a replay buffer of {self.buffer_size:,} transitions"
        free = resources.check_memory(what, needed, "give a smaller buffer_size")
        message = f"{what} takes {needed / 1e9:.2f} GB"
        return message if free is None else f"{message} of {free / 1e9:.1f} GB left"
