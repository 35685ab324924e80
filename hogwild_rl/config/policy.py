"""Settings of stochastic policies and of actor-critics, and the objects they describe."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import Space

from hogwild_rl.config import resources, validation
from hogwild_rl.config.network import NetworkConfig, body
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.envs.make import EnvInfo
from hogwild_rl.learn import normalization
from hogwild_rl.learn.normalization import Normalization, Normalizer
from hogwild_rl.models import layers
from hogwild_rl.models.actor_critic import ActorCritic, Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyConfig(NetworkConfig):
    """What a policy and the reward it learns from look like."""

    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: η falls to 0 at total_timesteps."""
    normalize_observations: bool = False
    """Take their running mean off observations, and divide by their running deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of discounted returns."""
    clip_rewards: normalization.Clip = "none"
    """sign: only their sign counts. A number: they are clipped to this range around 0."""
    reward_scale: float = 1.0
    """Factor on rewards; reported returns are as the environment pays them, whatever is done."""
    ent_coef: float = 0.01
    """Weight β of the policy's entropy."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this global norm."""
    shared_trunk: bool = False
    """One body under policy and value, instead of one for each; a CNN or LSTM always is."""
    state_dependent_std: bool = False
    """The deviation of continuous actions depends on the observation."""
    log_std_init: float = 0.0
    """Its logarithm at first."""
    rescale_actions: bool = False
    """The policy's -1 to 1 means a continuous action's whole range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ent_coef", "vf_coef"):
            validation.between(name, getattr(self, name), 0, 1e9)
        for name in ("reward_scale", "max_grad_norm"):
            validation.above(name, getattr(self, name), 0)
        if not isinstance(self.clip_rewards, str):
            validation.above("clip_rewards", self.clip_rewards, 0)
        validation.between("log_std_init", self.log_std_init, -10, 2)

    def learning_rate_at(self, progress: float) -> float:
        """η after a share of the run in [0, 1), counted over all who update together."""
        return self.learning_rate * (1 - progress if self.lr_schedule == "linear" else 1)

    def model(self, env_info: EnvInfo, bfloat16: bool = False) -> ActorCritic:
        """The network, with the initial weights of this seed.

        Raises:
            UserError: it does not fit the spaces or into memory, or what the caller's function
                makes cannot be trained.
        """
        self.check_size(env_info)
        return ActorCritic(
            env_info.observation_space,
            env_info.action_space,
            dataclasses.replace(_architecture(vars(self)), bfloat16=bfloat16),
            torch.Generator().manual_seed(self.seed),
        )

    def normalization(self, env_info: EnvInfo, workers: int) -> Normalization:
        """The running moments that so many workers share."""
        return Normalization(
            workers,
            ObservationCodec.of(env_info.observation_space),
            observations=self.normalize_observations,
            rewards=self.normalize_rewards,
        )

    def normalizer(self, normalization: Normalization, worker: int) -> Normalizer:
        """One worker's part in them."""
        return Normalizer(normalization, worker, self.gamma, self.clip_rewards, self.reward_scale)

    def env_codec(self, env_info: EnvInfo, normalizer: Normalizer) -> EnvCodec:
        """Between the network and its environments."""
        return EnvCodec(
            ObservationCodec.of(env_info.observation_space),
            ActionCodec.of(env_info.action_space, self.rescale_actions),
            rewards=normalizer.transform_rewards,
        )


def rebuilt(
    observation_space: Space[Any],
    action_space: Space[Any],
    values: Mapping[str, Any],
    network: layers.BodyMaker | None = None,
) -> ActorCritic:
    """The network that settings by these names describe, its parameters still to be loaded.

    Raises:
        UserError: the settings name a function, and it is not given.
    """
    return ActorCritic(observation_space, action_space, _architecture(values, network))


def _architecture(
    values: Mapping[str, Any], network: layers.BodyMaker | None = None
) -> Architecture:
    return Architecture(
        network=body(values, network),
        hidden=tuple(values["hidden"]),
        activation=values["activation"],
        shared_trunk=values["shared_trunk"],
        lstm=values.get("lstm", 0),
        standardize=values["normalize_observations"],
        state_dependent_std=values["state_dependent_std"],
        log_std_init=values["log_std_init"],
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(PolicyConfig):
    """A policy that is updated after every few steps, with the help of a value function."""

    n_steps: int = 16
    """Steps of each environment between updates."""
    gae_lambda: float = 0.95
    """λ of generalized advantage estimation; 1 is the paper's n-step return."""
    terminal_on_life_loss: bool = False
    """A lost life ends the values, as death does, though not the episode."""
    rms_alpha: float = 0.99
    """Decay α of RMSprop's running average."""
    rms_eps: float = 1e-5
    """ε of RMSprop, inside the root."""
    lstm: int = 0
    """Size of an LSTM cell between body and heads; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the network's body computes in it; parameters and losses stay float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.at_least("n_steps", self.n_steps, 1)
        validation.between("gae_lambda", self.gae_lambda, 0, 1)
        validation.above("rms_eps", self.rms_eps, 0)
        validation.between("rms_alpha", self.rms_alpha, 0, 0.999_999)
        validation.at_least("lstm", self.lstm, 0)

    def check_rollouts(self, env_info: EnvInfo, num_envs: int) -> None:
        """Makes sure that the observations of so many environments' rollouts fit into memory.

        Raises:
            UserError: they do not.
        """
        seen = ObservationCodec.of(env_info.observation_space)
        row = math.prod(seen.shape) * np.dtype(seen.dtype).itemsize
        resources.check_memory(
            f"what {num_envs:,} environments show in n_steps {self.n_steps:,}",
            (self.n_steps + 1) * num_envs * row,
            "give a smaller n_steps, or fewer environments",
        )

    def env_codec(self, env_info: EnvInfo, normalizer: Normalizer) -> EnvCodec:
        """Between the network and its environments."""
        plain = super().env_codec(env_info, normalizer)
        return dataclasses.replace(
            plain, state_size=self.lstm, terminal_on_life_loss=self.terminal_on_life_loss
        )
