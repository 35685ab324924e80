"""What learners from a replay are printed, and the parts that their settings describe."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from gymnasium import Space

from hogwild_rl.collect import replay
from hogwild_rl.collect.noise import Gaussian, Noise, OrnsteinUhlenbeck
from hogwild_rl.config import base, resources, validation
from hogwild_rl.config.network import NetworkConfig, body
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.models import layers
from hogwild_rl.models.actor_critic import Architecture
from hogwild_rl.models.deterministic import DeterministicActorCritic

_ALL = -1  # gradient_steps: as many as there were transitions


@dataclasses.dataclass(frozen=True, kw_only=True)
class OffPolicyConfig(NetworkConfig, base.DeviceConfig):
    """A deterministic policy that is learnt from a replay."""

    env: Annotated[make.EnvSource, base.ENV_FLAG] = "Pendulum-v1"
    """Environment: a registered id, module:Id, or from Python a picklable callable."""
    workers: int = 1
    """Actor-learners that share one model, each with environments and a replay of its own; 1 is
    the textbook's algorithm."""
    envs_per_worker: int = 1
    """Environments each steps together."""
    hidden: tuple[int, ...] = (256, 256)
    """Sizes of the hidden layers."""
    activation: Literal["tanh", "relu"] = "relu"
    """Between these layers."""
    tau: float = 0.005
    """Share τ by which the slow copies follow at every update."""
    batch_size: int = 256
    """Transitions in a batch."""
    buffer_size: int = 1_000_000
    """Transitions kept, over all workers."""
    learning_starts: int = 1_000
    """Steps with random actions at first, over all workers."""
    train_every: int = 1
    """Steps of every environment between updates."""
    gradient_steps: int = 1
    """Updates then; -1 for as many as there were transitions."""
    noise: Literal["gaussian", "ou"] = "gaussian"
    """On actions: independent, or an Ornstein-Uhlenbeck process, whose pushes last."""
    noise_std: float = 0.1
    """Its σ, where half an action's range is 1."""
    ou_theta: float = 0.15
    """θ of Ornstein-Uhlenbeck noise, how fast it returns to 0."""
    ou_dt: float = 0.01
    """Its Δt."""
    save_replay: bool = False
    """Keep the replay in the run's folder with every checkpoint, for --resume."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("workers", "envs_per_worker", "batch_size", "train_every"):
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
                f"device cuda is for one worker, got workers {self.workers}: several share a model "
                "in the memory of the CPU"
            )

    def updates_after(self, transitions: int) -> int:
        """How many updates follow so many new transitions."""
        return transitions if self.gradient_steps == _ALL else self.gradient_steps

    def model(self, env_info: make.EnvInfo, critics: int) -> DeterministicActorCritic:
        """The networks, with the initial weights of this seed.

        Raises:
            UserError: they do not fit the spaces, or into memory.
        """
        self.check_size(env_info)
        return DeterministicActorCritic(
            env_info.observation_space,
            env_info.action_space,
            _architecture(vars(self)),
            critics,
            torch.Generator().manual_seed(self.seed),
        )

    def env_codec(self, env_info: make.EnvInfo) -> EnvCodec:
        """Between the policy, whose actions lie in −1..1, and its environments."""
        return EnvCodec(
            ObservationCodec.of(env_info.observation_space),
            ActionCodec.of(env_info.action_space, rescale=True),
        )

    def normalization(self, env_info: make.EnvInfo) -> Normalization:
        """No running moments: neither observations nor rewards are changed."""
        codec = ObservationCodec.of(env_info.observation_space)
        return Normalization(self.workers, codec, observations=False, rewards=False)

    def replay(self, env_codec: EnvCodec) -> replay.ReplayBuffer:
        """One worker's share of the memory."""
        return replay.ReplayBuffer(
            self.buffer_size // self.workers, self.envs_per_worker, env_codec
        )

    def explore(self, env_codec: EnvCodec, generator: torch.Generator) -> Noise:
        """One worker's noise."""
        B, A = self.envs_per_worker, env_codec.actions.shape[0]
        if self.noise == "gaussian":
            return Gaussian(B, A, self.noise_std, generator)
        return OrnsteinUhlenbeck(B, A, self.noise_std, self.ou_theta, self.ou_dt, generator)

    def check_memory(self, env_codec: EnvCodec) -> str:
        """What all replays take, in words.

        Raises:
            UserError: the machine has not got it.
        """
        each = self.buffer_size // self.workers
        wanted = self.workers * replay.size_in_bytes(each, self.envs_per_worker, env_codec)
        what, remedy = f"a replay of {self.buffer_size:,} transitions", "give a smaller buffer_size"
        free = resources.check_memory(what, wanted, remedy)
        said = f"{what} takes {wanted / 1e9:.2f} GB"
        return said if free is None else f"{said} of {free / 1e9:.1f} GB left"


def rebuilt(
    observation_space: Space[Any],
    action_space: Space[Any],
    values: Mapping[str, Any],
    network: layers.BodyMaker | None = None,
) -> DeterministicActorCritic:
    """The networks that settings by these names describe, their parameters still to be loaded.

    Raises:
        UserError: the settings name a function, and it is not given.
    """
    critics = values.get("critics", 1)
    architecture = _architecture(values, network)
    return DeterministicActorCritic(observation_space, action_space, architecture, critics)


def _architecture(
    values: Mapping[str, Any], network: layers.BodyMaker | None = None
) -> Architecture:
    return Architecture(
        network=body(values, network),
        hidden=tuple(values["hidden"]),
        activation=values["activation"],
    )
