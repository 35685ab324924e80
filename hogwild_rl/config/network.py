"""Network settings, shared by all algorithms."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import tyro

from hogwild_rl.config import base, resources, validation
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models import encoders, layers
from hogwild_rl.models.actor_critic import Architecture

_NETWORKS = ("auto", "mlp", *encoders.CNNS)

# Command-line form of `network`: a name. From Python it may also be a function that makes, for a
# space, a module from rows [T, B, *O] to features [T, B, F].
_NETWORK_FLAG = tyro.constructors.PrimitiveConstructorSpec[str | layers.BodyMaker](
    nargs=1,
    metavar="{" + ",".join(_NETWORKS) + "}",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda network: [make.name_of(network)],
    choices=_NETWORKS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(base.RunConfig):
    """Settings of the network and its optimization."""

    learning_rate: float = 1e-3
    """Initial learning rate η."""
    gamma: float = 0.99
    """Discount factor γ."""
    reward_scale: float = 1.0
    """Factor on rewards; reported returns are always those of the environment's own rewards."""
    network: Annotated[str | layers.BodyMaker, _NETWORK_FLAG] = "auto"
    """Network body; auto: a3c (the A3C paper's CNN) for images, else mlp."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the MLP's hidden layers."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Activation function of the hidden layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.network, str) and self.network not in _NETWORKS:
            raise UserError(
                f"network {self.network} is unknown: give {', '.join(_NETWORKS)}, or from Python a "
                "function that makes one"
            )
        for name in ("learning_rate", "reward_scale"):
            validation.above(name, getattr(self, name), 0)
        validation.between("gamma", self.gamma, 0, 1)
        for size in self.hidden:
            validation.at_least("hidden", size, 1)

    @property
    def scales_rewards(self) -> bool:
        """True if rewards are scaled."""
        return self.reward_scale != 1

    def to_json(self) -> dict[str, Any]:
        """Plain values; a callable network by its name."""
        return {**super().to_json(), "network": make.name_of(self.network)}

    def check_size(self, env_info: make.EnvInfo) -> None:
        """Raises UserError if an MLP or LSTM of these sizes does not fit into memory."""
        if not isinstance(self.network, str):
            return  # the sizes are known only to the user's function
        vector_size = ObservationCodec.of(env_info.observation_space).vector
        layers = itertools.pairwise((vector_size, *self.hidden))
        num_parameters = sum(inputs * outputs for inputs, outputs in layers)
        H = getattr(self, "lstm", 0)
        num_parameters += 4 * H**2
        lstm = f" and lstm {H}" if H else ""
        resources.check_memory(
            f"a network of {vector_size:,} inputs, hidden {self.hidden}{lstm}",
            4 * num_parameters,
            "give smaller layers",
        )

    def check_sendable(self, model: torch.nn.Module) -> None:
        """Raises UserError if a user's network function or its model cannot be pickled."""
        if not isinstance(self.network, str):
            name = make.name_of(self.network)
            make.require_picklable(f"network {name}", (self.network, model))


def architecture(
    values: Mapping[str, Any], network: layers.BodyMaker | None = None, bfloat16: bool = False
) -> Architecture:
    """Architecture of the settings of any algorithm, current or saved.

    Saved settings have only the name of a user's function, which is given as `network`.

    Raises:
        UserError: the settings name a function, which is not given.
    """
    body = network or values["network"]
    if isinstance(body, str) and body not in _NETWORKS:
        raise UserError(f"network {body} is a function: pass it to load as network")
    return Architecture(
        network=body,
        hidden=tuple(values["hidden"]),
        activation=values["activation"],
        shared_trunk=values.get("shared_trunk", False),
        lstm=values.get("lstm", 0),
        standardize=values.get("normalize_observations", False),
        state_dependent_std=values.get("state_dependent_std", False),
        log_std_init=values.get("log_std_init", 0.0),
        bfloat16=bfloat16,
    )
