"""Conversion of Gymnasium spaces to plain values, which cannot run code when loaded."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

# A space of a subclass is saved as its base class.
_SPACE_TYPES = (
    *(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
    *(spaces.Dict, spaces.Tuple),
)


def space_to_dict(space: gymnasium.Space[Any]) -> dict[str, Any]:
    """Converts a space to plain values and tensors."""
    kind = next((each.__name__ for each in _SPACE_TYPES if isinstance(space, each)), "")
    if isinstance(space, spaces.Box):
        exact = np.float64 if np.issubdtype(space.dtype, np.floating) else np.int64
        low, high = (torch.from_numpy(bound.astype(exact)) for bound in (space.low, space.high))
        return {"kind": kind, "low": low, "high": high, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Discrete):
        start, dtype = int(space.start), str(space.dtype)
        return {"kind": kind, "n": int(space.n), "start": start, "dtype": dtype}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start, dtype = space.nvec.tolist(), space.start.tolist(), str(space.dtype)
        return {"kind": kind, "nvec": nvec, "start": start, "dtype": dtype}
    if isinstance(space, spaces.MultiBinary):
        return {"kind": kind, "n": space.n}  # n as given: 4 and (4,) are not equal
    if isinstance(space, spaces.Dict):
        parts = [[name, space_to_dict(part)] for name, part in space.spaces.items()]
        return {"kind": kind, "spaces": parts}
    assert isinstance(space, spaces.Tuple), f"space {space} is not supported"
    return {"kind": kind, "spaces": [space_to_dict(part) for part in space.spaces]}


def space_from_dict(description: dict[str, Any]) -> gymnasium.Space[Any]:
    """Restores a space from `space_to_dict`."""
    kind = description["kind"]
    if kind == "Box":
        dtype = np.dtype(description["dtype"])
        low, high = (description[bound].numpy().astype(dtype) for bound in ("low", "high"))
        return spaces.Box(low, high, dtype=dtype.type)
    if kind == "Discrete":
        dtype = np.dtype(description["dtype"])
        options = {} if dtype == np.int64 else {"dtype": dtype.type}  # not in older gymnasium
        return spaces.Discrete(description["n"], start=description["start"], **options)
    if kind == "MultiDiscrete":
        nvec, start = (np.array(description[name]) for name in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, dtype=description["dtype"], start=start)
    if kind == "MultiBinary":
        return spaces.MultiBinary(description["n"])
    if kind == "Dict":
        # Pairs keep the order of the network's inputs; spaces.Dict sorts a dict.
        return spaces.Dict([(name, space_from_dict(part)) for name, part in description["spaces"]])
    return spaces.Tuple([space_from_dict(part) for part in description["spaces"]])
