"""Which network a run trains, whatever its algorithm."""

import dataclasses
import itertools
import pickle
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import tyro

from hogwild_rl.config import base, resources, validation
from hogwild_rl.envs import make
from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.models import encoders, layers

_NETWORKS = ("auto", "mlp", *encoders.CNNS)

# On the command line a network is named; from Python it may be a function that makes one.
_NETWORK_FLAG = tyro.constructors.PrimitiveConstructorSpec[str | layers.BodyMaker](
    nargs=1,
    metavar="{" + ",".join(_NETWORKS) + "}",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: isinstance(value, str) or callable(value),
    str_from_instance=lambda network: [name_of(network)],
    choices=_NETWORKS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkConfig(base.RunConfig):
    """What a network looks like."""

    learning_rate: float = 1e-3
    """Step size η at the start."""
    gamma: float = 0.99
    """Discount γ."""
    network: Annotated[str | layers.BodyMaker, _NETWORK_FLAG] = "auto"
    """Body: auto is a3c, the paper's CNN, for images, else mlp. From Python also a function that
    makes a module for a space: rows [T, B, *O] to features [T, B, F]."""
    hidden: tuple[int, ...] = (64, 64)
    """Sizes of the hidden layers of an MLP."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between these layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.network, str) and self.network not in _NETWORKS:
            raise UserError(
                f"network {self.network} is not one of {', '.join(_NETWORKS)}: a function that "
                "makes one is given from Python"
            )
        validation.above("learning_rate", self.learning_rate, 0)
        validation.between("gamma", self.gamma, 0, 1)
        for size in self.hidden:
            validation.at_least("hidden", size, 1)

    def to_json(self) -> dict[str, Any]:
        """Plain values; a callable network by its name."""
        return {**super().to_json(), "network": name_of(self.network)}

    def check_size(self, env_info: make.EnvInfo) -> None:
        """Makes sure that the parameters of these layers, pictures aside, fit into memory.

        Raises:
            UserError: they do not.
        """
        if not isinstance(self.network, str):
            return  # its sizes are the caller's
        vector_size = ObservationCodec.of(env_info.observation_space).vector
        layers = itertools.pairwise((vector_size, *self.hidden))
        numbers = sum(inputs * outputs for inputs, outputs in layers)
        cell = getattr(self, "lstm", 0)
        numbers += 4 * cell**2
        remembering = f" and lstm {cell}" if cell else ""
        resources.check_memory(
            f"a network of {vector_size:,} inputs, hidden {self.hidden}{remembering}",
            4 * numbers,
            "give smaller layers",
        )

    def check_sendable(self, model: torch.nn.Module) -> None:
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
                f"network {name_of(self.network)} cannot be sent to workers ({error}): "
                "give a function, and modules, at the top level of a module"
            ) from error


def name_of(network: str | layers.BodyMaker) -> str:
    """A named network's name, or that of a function that makes one."""
    if isinstance(network, str):
        return network
    return f"{network.__module__}.{getattr(network, '__qualname__', type(network).__qualname__)}"


def body(values: Mapping[str, Any], network: layers.BodyMaker | None) -> str | layers.BodyMaker:
    """What settings say of the body, by name, or the function that they name.

    Raises:
        UserError: they name a function, and it is not given.
    """
    chosen = network or values["network"]
    if isinstance(chosen, str) and chosen not in _NETWORKS:
        raise UserError(f"network {chosen} is a function: give it to load as network")
    return chosen
