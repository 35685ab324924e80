"""What every learner of a stochastic policy is told, and the parts that its settings describe."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import torch
from gymnasium import Space

from hogwild_rl.envs.actions import ActionCodec
from hogwild_rl.envs.observations import ObservationCodec
from hogwild_rl.envs.vector import EnvFacts
from hogwild_rl.learning.interface import Interface
from hogwild_rl.models import networks
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.runs import normalize, settings
from hogwild_rl.runs.network import NetworkSettings, body
from hogwild_rl.runs.normalize import Normalization, Normalizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings(NetworkSettings):
    """What a policy and the reward it learns from look like."""

    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: η falls to 0 at total_timesteps."""
    normalize_observations: bool = False
    """Take their running mean off observations, and divide by their running deviation."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of discounted returns."""
    clip_rewards: normalize.Clip = "none"
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
            settings.between(name, getattr(self, name), 0, 1e9)
        for name in ("reward_scale", "max_grad_norm"):
            settings.above(name, getattr(self, name), 0)
        if not isinstance(self.clip_rewards, str):
            settings.above("clip_rewards", self.clip_rewards, 0)
        settings.between("log_std_init", self.log_std_init, -10, 2)

    def learning_rate_at(self, progress: float) -> float:
        """η after a share of the run in [0, 1), counted over all who update together."""
        return self.learning_rate * (1 - progress if self.lr_schedule == "linear" else 1)

    def model(self, facts: EnvFacts, bfloat16: bool = False) -> ActorCritic:
        """The network, with the initial weights of this seed.

        Raises:
            UserError: it does not fit the spaces or into memory, or what the caller's function
                makes cannot be trained.
        """
        self.check_size(facts)
        return ActorCritic(
            facts.observation_space,
            facts.action_space,
            dataclasses.replace(_architecture(vars(self)), bfloat16=bfloat16),
            torch.Generator().manual_seed(self.seed),
        )

    def normalization(self, facts: EnvFacts, workers: int) -> Normalization:
        """The running moments that so many workers share."""
        return Normalization(
            workers,
            ObservationCodec.of(facts.observation_space),
            observations=self.normalize_observations,
            rewards=self.normalize_rewards,
        )

    def normalizer(self, normalization: Normalization, worker: int) -> Normalizer:
        """One worker's part in them."""
        return Normalizer(normalization, worker, self.gamma, self.clip_rewards, self.reward_scale)

    def interface(self, facts: EnvFacts, normalizer: Normalizer) -> Interface:
        """Between the network and its environments."""
        return Interface(
            ObservationCodec.of(facts.observation_space),
            ActionCodec.of(facts.action_space, self.rescale_actions),
            rewards=normalizer.pay,
        )


def rebuilt(
    observation_space: Space[Any],
    action_space: Space[Any],
    values: Mapping[str, Any],
    network: networks.BodyMaker | None = None,
) -> ActorCritic:
    """The network that settings by these names describe, its parameters still to be loaded.

    Raises:
        UserError: the settings name a function, and it is not given.
    """
    return ActorCritic(observation_space, action_space, _architecture(values, network))


def _architecture(
    values: Mapping[str, Any], network: networks.BodyMaker | None = None
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
