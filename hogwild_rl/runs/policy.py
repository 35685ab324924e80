"""What every learner of a stochastic policy is told, and the parts that its settings describe."""

import dataclasses
import pickle
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import tyro

from hogwild_rl import UserError
from hogwild_rl.envs.actions import ActionCodec
from hogwild_rl.envs.observations import ObservationCodec
from hogwild_rl.envs.vector import EnvFacts
from hogwild_rl.learning.rollout import Interface
from hogwild_rl.models import networks, vision
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.runs import normalize, settings
from hogwild_rl.runs.normalize import Normalization, Normalizer

_NETWORKS = ("auto", "mlp", *vision.CNNS)

# On the command line a network is named; from Python it may be a function that makes one.
_NETWORK_FLAG = tyro.constructors.PrimitiveConstructorSpec[str | networks.BodyMaker](
    nargs=1,
    metavar="{" + ",".join(_NETWORKS) + "}",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda network: [network_name(network)],
    choices=_NETWORKS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicySettings(settings.RunSettings):
    """What a policy and the reward it learns from look like."""

    learning_rate: float = 1e-3
    """Step size η at the start."""
    lr_schedule: Literal["linear", "constant"] = "linear"
    """linear: η falls to 0 at total_timesteps."""
    gamma: float = 0.99
    """Discount γ."""
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
    network: Annotated[str | networks.BodyMaker, _NETWORK_FLAG] = "auto"
    """Body: auto is a3c, the paper's CNN, for images, else mlp. From Python also a function that
    makes a module for a space: rows [T, B, *O] to features [T, B, F]."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers of an MLP."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between these layers."""
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
        if isinstance(self.network, str) and self.network not in _NETWORKS:
            raise UserError(
                f"network {self.network} is not one of {', '.join(_NETWORKS)}: a function that "
                "makes one is given from Python"
            )
        settings.between("gamma", self.gamma, 0, 1)
        for name in ("ent_coef", "vf_coef"):
            settings.between(name, getattr(self, name), 0, 1e9)
        for name in ("learning_rate", "reward_scale", "max_grad_norm"):
            settings.above(name, getattr(self, name), 0)
        if not isinstance(self.clip_rewards, str):
            settings.above("clip_rewards", self.clip_rewards, 0)
        settings.between("log_std_init", self.log_std_init, -10, 2)
        for size in self.hidden:
            settings.at_least("hidden", size, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a callable network by its name."""
        return {**super().to_json(), "network": network_name(self.network)}

    def learning_rate_at(self, progress: float) -> float:
        """η after a share of the run in [0, 1), counted over all who update together."""
        return self.learning_rate * (1 - progress if self.lr_schedule == "linear" else 1)

    def model(self, facts: EnvFacts, bfloat16: bool = False) -> ActorCritic:
        """The network, with the initial weights of this seed.

        Raises:
            UserError: it does not fit the spaces, or what the caller's function makes cannot be
                trained.
        """
        return ActorCritic(
            facts.observation_space,
            facts.action_space,
            dataclasses.replace(architecture(vars(self)), bfloat16=bfloat16),
            torch.Generator().manual_seed(self.seed),
        )

    def check_sendable(self, model: ActorCritic) -> None:
        """Makes sure that worker processes can be given a network of the caller's own.

        Raises:
            UserError: they cannot.
        """
        if isinstance(self.network, str):
            return
        try:
            pickle.dumps((self.network, model))
        except Exception as error:  # whatever its parts raise
            raise UserError(
                f"network {network_name(self.network)} cannot be sent to workers ({error}): "
                "give a function, and modules, at the top level of a module"
            ) from error

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


def architecture(
    values: Mapping[str, Any], network: networks.BodyMaker | None = None
) -> Architecture:
    """Of the network that settings describe.

    Args:
        values: by their names.
        network: makes the body; by default as the settings say.

    Raises:
        UserError: the settings name a function, and it is not given.
    """
    body = network or values["network"]
    if isinstance(body, str) and body not in _NETWORKS:
        raise UserError(f"network {body} is a function: give it to load as network")
    return Architecture(
        network=body,
        hidden=tuple(values["hidden"]),
        activation=values["activation"],
        shared_trunk=values["shared_trunk"],
        lstm=values.get("lstm", 0),
        standardize=values["normalize_observations"],
        state_dependent_std=values["state_dependent_std"],
        log_std_init=values["log_std_init"],
    )


def network_name(network: str | networks.BodyMaker) -> str:
    """A named network's name, or that of a function that makes one."""
    if isinstance(network, str):
        return network
    return f"{network.__module__}.{getattr(network, '__qualname__', type(network).__qualname__)}"
