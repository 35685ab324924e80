"""Settings of stochastic policies and actor-critics."""

import dataclasses
import math
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from gymnasium import spaces

from hogwild_rl.config import resources, validation
from hogwild_rl.config.network import NetworkConfig, architecture
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.envs.make import EnvInfo
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.optimizers import (
    SharedAdam,
    SharedOptimizer,
    SharedRMSprop,
    SharedSGD,
)
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.hogwild.staleness import Correction, StaleSteps
from hogwild_rl.learn import normalization
from hogwild_rl.learn.normalization import Normalization, Normalizer
from hogwild_rl.models.actor_critic import ActorCritic

# For continuous actions the bonus makes σ grow without limit where rewards are small.
_ENT_COEF = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(NetworkConfig):
    """Settings of a stochastic policy, its loss and its rewards."""

    lr_schedule: Literal["linear", "constant"] = "linear"
    """Learning-rate schedule; linear: η falls to 0 at total_timesteps."""
    normalize_observations: Literal["auto"] | bool = "auto"
    """Standardize observations by their running mean and standard deviation; auto:
    vectors, unless the network is your own."""
    normalize_rewards: bool = True
    """Divide rewards by the running standard deviation of discounted returns."""
    clip_rewards: normalization.Clip = "none"
    """Clip rewards; sign: to their sign; a number c: to [−c, c]."""
    ent_coef: Literal["auto"] | float = "auto"
    """Weight β of the entropy bonus; auto: 0.01, for continuous actions 0."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Maximum global norm of the gradient; larger gradients are scaled down to it."""
    shared_trunk: bool = False
    """One body for policy and value instead of one each; CNNs and LSTMs are always shared."""
    state_dependent_std: bool = False
    """Let the standard deviation of continuous actions depend on the observation."""
    log_std_init: float = 0.0
    """Initial log standard deviation of continuous actions."""
    rescale_actions: bool = True
    """Rescale continuous actions from [−1, 1] to the range of the action space, where bounded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.between("vf_coef", self.vf_coef, 0, 1e9)
        if self.ent_coef != "auto":
            validation.between("ent_coef", self.ent_coef, 0, 1e9)
        validation.above("max_grad_norm", self.max_grad_norm, 0)
        if not isinstance(self.clip_rewards, str):
            validation.above("clip_rewards", self.clip_rewards, 0)
        validation.between("log_std_init", self.log_std_init, -10, 2)

    def for_env(self, env_info: EnvInfo) -> "PolicyConfig":
        """Returns the settings with the defaults for these spaces in place of "auto"."""
        vectors = ObservationCodec.of(env_info.observation_space).vector > 0
        defaults: dict[str, Any] = {
            "ent_coef": 0.0 if isinstance(env_info.action_space, spaces.Box) else _ENT_COEF,
            "normalize_observations": vectors and isinstance(self.network, str),
        }
        unset = {n: value for n, value in defaults.items() if getattr(self, n) == "auto"}
        return dataclasses.replace(self, **unset) if unset else self

    @property
    def scales_rewards(self) -> bool:
        """True if rewards are normalized, clipped or scaled."""
        return self.normalize_rewards or self.clip_rewards != "none" or super().scales_rewards

    def learning_rate_at(self, progress: float) -> float:
        """Learning rate η at a progress of the whole run (all workers) in [0, 1)."""
        return self.learning_rate * (1 - progress if self.lr_schedule == "linear" else 1)

    def model(self, env_info: EnvInfo, bfloat16: bool = False) -> ActorCritic:
        """Builds the network, with initial weights of the run's seed.

        Raises:
            UserError: the network does not fit the spaces or into memory, or the module of a
                user's function cannot be trained.
        """
        self.check_size(env_info)
        return ActorCritic(
            env_info.observation_space,
            env_info.action_space,
            architecture(vars(self.for_env(env_info)), bfloat16=bfloat16),
            torch.Generator().manual_seed(self.seed),
        )

    def normalization(self, env_info: EnvInfo, workers: int) -> Normalization:
        """Running moments, shared by the workers."""
        return Normalization(
            workers,
            ObservationCodec.of(env_info.observation_space),
            observations=bool(self.for_env(env_info).normalize_observations),
            rewards=self.normalize_rewards,
        )

    def normalizer(self, normalization: Normalization, worker: int) -> Normalizer:
        """One worker's reward and observation normalizer."""
        return Normalizer(normalization, worker, self.gamma, self.clip_rewards, self.reward_scale)

    def env_codec(self, env_info: EnvInfo, normalizer: Normalizer) -> EnvCodec:
        """Codec between the network and its environments."""
        return EnvCodec(
            ObservationCodec.of(env_info.observation_space),
            ActionCodec.of(env_info.action_space, self.rescale_actions),
            rewards=normalizer.transform_rewards if normalizer.transforms_rewards else None,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(PolicyConfig):
    """Settings of an advantage actor-critic (A3C, A2C)."""

    n_steps: int = 16
    """Rollout length T: steps of each environment between updates."""
    gae_lambda: float = 0.95
    """λ of generalized advantage estimation; 1: the A3C paper's n-step return."""
    terminal_on_life_loss: bool = False
    """Treat a lost life as terminal for bootstrapping; the episode continues."""
    optimizer: Literal["rmsprop", "adam", "sgd"] = "rmsprop"
    """Optimizer, with statistics that all workers share."""
    rms_alpha: float = 0.99
    """Decay α of RMSprop's running average."""
    rms_eps: float = 1e-5
    """ε of RMSprop."""
    eps_inside_root: bool = True
    """Add ε of RMSprop inside the root, as the A3C paper does; torch.optim adds it outside."""
    momentum: float = 0.0
    """Momentum of RMSprop and SGD."""
    adam_eps: float = 1e-5
    """ε of Adam."""
    lstm: int = 0
    """Size of the LSTM between body and heads; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Number format of the body's computation; parameters and losses are always float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.at_least("n_steps", self.n_steps, 1)
        validation.between("gae_lambda", self.gae_lambda, 0, 1)
        validation.above("rms_eps", self.rms_eps, 0)
        validation.between("rms_alpha", self.rms_alpha, 0, 0.999_999)
        validation.above("adam_eps", self.adam_eps, 0)
        validation.between("momentum", self.momentum, 0, 0.999_999)
        validation.at_least("lstm", self.lstm, 0)

    def shared_optimizer(self, model: SharedModel[Any], *, alone: bool = False) -> SharedOptimizer:
        """The optimizer of a model; `alone` as in `SharedAdam`."""
        if self.optimizer == "adam":
            return SharedAdam(model, self.learning_rate, eps=self.adam_eps, alone=alone)
        if self.optimizer == "sgd":
            return SharedSGD(model, self.learning_rate, self.momentum)
        rms = (self.rms_alpha, self.rms_eps, self.momentum, self.eps_inside_root)
        return SharedRMSprop(model, self.learning_rate, *rms)

    def check_rollouts(self, env_info: EnvInfo, num_envs: int) -> None:
        """Raises UserError if the rollouts of all environments do not fit into memory."""
        codec = ObservationCodec.of(env_info.observation_space)
        row_bytes = math.prod(codec.shape) * np.dtype(codec.dtype).itemsize
        resources.check_memory(
            f"a rollout of {num_envs:,} environments and n_steps {self.n_steps:,}",
            (self.n_steps + 1) * num_envs * row_bytes,
            "give a smaller n_steps, or fewer environments",
        )

    def env_codec(self, env_info: EnvInfo, normalizer: Normalizer) -> EnvCodec:
        """Codec between the network and its environments."""
        codec, life_loss = super().env_codec(env_info, normalizer), self.terminal_on_life_loss
        return dataclasses.replace(codec, state_size=self.lstm, terminal_on_life_loss=life_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LockFreeConfig(ActorCriticConfig):
    """Settings of an actor-critic with lock-free workers: corrections of stale gradients."""

    staleness: Annotated[Correction, tyro.conf.arg(metavar="CORRECTION")] = "ignore"
    """Correction of a gradient by the updates of others since its parameters were pulled: ignore,
    compensate, late-pull, v-trace, delay-adaptive, inverse, drop or accumulate."""
    staleness_lambda: float = 2.0
    """λ of compensate."""
    staleness_bound: int = 32
    """Largest delay of a gradient that drop applies, in updates."""
    accumulate: int = 4
    """Gradients of a worker per step, with accumulate."""
    artificial_delay: int = 0
    """Apply each gradient this number of own gradients later, to study staleness."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.between("staleness_lambda", self.staleness_lambda, 0, 1e9)
        for name, least in (("staleness_bound", 0), ("accumulate", 1), ("artificial_delay", 0)):
            validation.at_least(name, getattr(self, name), least)
        if self.staleness == "compensate" and self.optimizer == "sgd":
            raise UserError(
                "compensate uses a running average of Δθ²: give optimizer rmsprop or adam"
            )

    @property
    def pulls_late(self) -> bool:
        """True if the parameters are pulled again between acting and the gradient."""
        return self.staleness in ("late-pull", "v-trace")

    def stale_steps(self, optimizer: SharedOptimizer, **others: Any) -> StaleSteps | None:
        """Steps with these settings, or None where every gradient is applied as it is."""
        if not self.artificial_delay and (self.staleness == "ignore" or self.pulls_late):
            return None
        return StaleSteps(
            optimizer,
            correction=self.staleness,
            strength=self.staleness_lambda,
            bound=self.staleness_bound,
            count=self.accumulate,
            artificial_delay=self.artificial_delay,
            **others,
        )
