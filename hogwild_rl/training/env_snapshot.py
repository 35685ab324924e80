"""Snapshots of the state of environments, as plain values.

A newly created environment continues from the snapshot of another one. A snapshot contains numbers,
strings, arrays and states of random generators by attribute name; loading one cannot run code.
Spaces, specs and functions are not captured; they stay as created. State outside Python, for
example in a C++ simulator, cannot be captured.
"""

import enum
import functools
import types
from collections import deque
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.envs.registration import EnvSpec

from hogwild_rl.envs.subproc import ProcessVectorEnv

_AS_MADE = (
    *(Space, EnvSpec, enum.Enum, type, np.dtype, functools.partial, types.ModuleType),
    *(types.FunctionType, types.MethodType, types.BuiltinFunctionType),
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")


class _Bare:
    """Reference for the size of an object that has attributes only."""


class OpaqueError(Exception):
    """State outside Python that cannot be captured; the message is its path and type."""


class MisfitError(Exception):
    """Snapshot of different environments; the message is the path of the mismatch."""


def capture(thing: Any) -> dict[str, Any]:
    """Captures the state of environments, or of any object built of Python and numpy values.

    Raises:
        OpaqueError: part of the state cannot be captured.
    """
    if isinstance(thing, ProcessVectorEnv):
        raise OpaqueError("environments run in separate processes")
    return _Capture().part(thing, type(thing).__name__)


def restore(thing: Any, snapshot: dict[str, Any]) -> None:
    """Restores a snapshot into an object that was created in the same way.

    Raises:
        MisfitError: the object does not match; it may be partly restored.
    """
    if isinstance(thing, ProcessVectorEnv):
        raise MisfitError(type(thing).__name__)
    _Restore().part(thing, snapshot, type(thing).__name__)


class _Capture:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}  # index of each visited object, by id()
        self._kept: list[Any] = []  # keeps ids unique: a freed object's id is reused

    def part(self, thing: Any, path: str) -> dict[str, Any]:
        if type(thing) in _PLAIN:
            return {"is": "plain", "value": thing}
        if isinstance(thing, _AS_MADE):
            return {"is": "as made"}
        if id(thing) in self._numbers:
            return {"is": "met", "number": self._numbers[id(thing)]}
        self._numbers[id(thing)] = len(self._kept)
        self._kept.append(thing)
        return self._new(thing, path)

    def _new(self, thing: Any, path: str) -> dict[str, Any]:
        if isinstance(thing, np.ndarray | np.generic) and thing.dtype.kind in "biufcSU":
            data = torch.from_numpy(np.frombuffer(thing.tobytes(), np.uint8).copy())
            shape = list(thing.shape) if isinstance(thing, np.ndarray) else None
            return {"is": "array", "dtype": thing.dtype.str, "shape": shape, "data": data}
        if isinstance(thing, torch.Tensor):
            return {"is": "tensor", "value": thing.detach().clone()}
        if isinstance(thing, np.random.Generator):
            state = self.part(thing.bit_generator.state, f"{path}.bit_generator.state")
            return {"is": "generator", "state": state}
        if type(thing) in _SEQUENCES.values():
            parts = [self.part(item, f"{path}[{i}]") for i, item in enumerate(thing)]
            room = thing.maxlen if isinstance(thing, deque) else None
            return {"is": type(thing).__name__, "parts": parts, "room": room}
        if type(thing) is dict:
            pairs = [
                [self.part(key, f"{path} key"), self.part(item, f"{path}[{key!r}]")]
                for key, item in thing.items()
            ]
            return {"is": "dict", "pairs": pairs}
        if not hasattr(thing, "__dict__") or type(thing).__basicsize__ > _Bare.__basicsize__:
            raise OpaqueError(f"{path} is of {type(thing)}")
        attributes = {name: self.part(item, f"{path}.{name}") for name, item in vars(thing).items()}
        return {"is": "object", "parts": attributes}


class _Restore:
    def __init__(self) -> None:
        self._met: list[Any] = []

    def part(self, now: Any, state: dict[str, Any], path: str) -> Any:
        """Returns the restored value: `now`, changed in place, if it is an object or fits."""
        kind = state["is"]
        if kind == "plain":
            if type(state["value"]) not in _PLAIN:
                raise MisfitError(path)
            return state["value"]
        if kind == "as made":
            return now
        if kind == "met":
            return self._met[state["number"]]
        number = len(self._met)
        self._met.append(now)  # its parts may refer to it
        self._met[number] = self._new(now, state, path)
        return self._met[number]

    def _new(self, now: Any, state: dict[str, Any], path: str) -> Any:
        kind = state["is"]
        if kind == "array":
            return _array(now, state)
        if kind == "tensor":
            return state["value"]
        if kind == "generator":
            return self._generator(now, state, path)
        if kind in _SEQUENCES:
            return self._sequence(now, state, path)
        if kind == "dict":
            keys = [self.part(None, key, path) for key, _ in state["pairs"]]
            current = now if isinstance(now, dict) else {}
            return {
                key: self.part(current.get(key), item, f"{path}[{key!r}]")
                for key, (_, item) in zip(keys, state["pairs"], strict=True)
            }
        if kind != "object" or isinstance(now, _AS_MADE) or not hasattr(now, "__dict__"):
            raise MisfitError(path)
        for name, part in state["parts"].items():
            vars(now)[name] = self.part(vars(now).get(name), part, f"{path}.{name}")
        return now

    def _sequence(self, now: Any, state: dict[str, Any], path: str) -> Any:
        parts, kind = state["parts"], _SEQUENCES[state["is"]]
        current = list(now) if isinstance(now, kind) else []
        current += [None] * (len(parts) - len(current))
        new = [self.part(current[i], part, f"{path}[{i}]") for i, part in enumerate(parts)]
        return deque(new, state["room"]) if kind is deque else kind(new)

    def _generator(self, now: Any, state: dict[str, Any], path: str) -> Any:
        stream = self.part(None, state["state"], path)
        name = stream["bit_generator"]
        if name not in _BIT_GENERATORS:
            raise MisfitError(path)
        if not isinstance(now, np.random.Generator) or type(now.bit_generator).__name__ != name:
            now = np.random.Generator(getattr(np.random, name)())
        now.bit_generator.state = stream
        return now


def _array(now: Any, state: dict[str, Any]) -> Any:
    values = np.frombuffer(state["data"].numpy().tobytes(), np.dtype(state["dtype"]))
    if state["shape"] is None:
        return values[0]
    values = values.reshape(state["shape"])
    # In place if it fits: other objects may hold views of it.
    fits = isinstance(now, np.ndarray) and now.shape == values.shape and now.dtype == values.dtype
    if fits and now.flags.writeable:
        now[...] = values
        return now
    return values.copy()
