"""Type and range checks of settings."""

import decimal
import enum
import math
import numbers
import os
import types
from collections import abc
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
import torch

from hogwild_rl.errors import UserError


def at_least(name: str, value: float, least: float) -> None:
    """Raises UserError unless value ≥ least."""
    if not value >= least:
        raise UserError(f"{name} must be at least {least:g}, got {value}")


def above(name: str, value: float, bound: float) -> None:
    """Raises UserError unless value > bound and finite."""
    if not (value > bound and math.isfinite(value)):
        raise UserError(f"{name} must be above {bound:g}, got {value}")


def between(name: str, value: float, least: float, most: float) -> None:
    """Raises UserError unless least ≤ value ≤ most."""
    if not least <= value <= most:
        raise UserError(f"{name} must lie between {least:g} and {most:g}, got {value}")


def plain(value: Any) -> Any:
    """Converts NumPy, torch, enum, string, path and numeric types to plain Python values.

    >>> plain((np.float32(0.5), np.str_("a"), np.arange(2)))
    (0.5, 'a', (0, 1))
    """
    for types_, convert in _CONVERSIONS:
        if isinstance(value, types_):
            return convert(value)
    return value


_CONVERSIONS: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
    (enum.Enum, lambda value: plain(value.value)),
    ((bool, np.bool_), bool),
    (str, str.__str__),  # subclasses too
    (os.PathLike, os.fspath),
    (numbers.Integral, int),
    ((numbers.Real, decimal.Decimal), float),
    ((np.ndarray, torch.Tensor), lambda value: plain(value.tolist())),
    ((tuple, list, range), lambda value: tuple(map(plain, value))),
)
_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}


def check_type(name: str, value: Any, hint: Any) -> Any:
    """Returns the value if it has the annotated type; a float like 1e6 becomes an integer.

    Args:
        name, value: setting from the command line, a file or Python.
        hint: int, float, bool, str, a tuple of these, a Literal, None, a class, or a union.

    Raises:
        UserError: the value has another type.

    >>> check_type("workers", 4.0, int)
    4
    """
    allowed = _alternatives(hint)
    if any(_fits(value, type_) for type_ in allowed):
        return value
    if int in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    choices = [each for t in allowed if get_origin(t) is Literal for each in get_args(t)]
    if choices and isinstance(value, str):
        numbers = ", or a number" if float in allowed else ""
        raise UserError(f"{name} must be one of {', '.join(choices)}{numbers}, got {value!r}")
    wanted = dict.fromkeys(_describe(type_) for type_ in allowed if type_ is not type(None))
    raise UserError(f"{name} must be {' or '.join(wanted)}, got {value!r}")


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [each for part in get_args(hint) for each in _alternatives(part)]
    return [hint]


def _fits(value: Any, hint: Any) -> bool:
    if hint in (bool, int, float):
        abstract = {bool: bool | np.bool_, int: numbers.Integral, float: numbers.Real}[hint]
        return isinstance(value, abstract) and (hint is bool or not isinstance(value, bool))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        each = get_args(hint)[0]
        return isinstance(value, tuple | list) and all(_fits(part, each) for part in value)
    if isinstance(get_origin(hint) or hint, type) and get_origin(hint) is not abc.Callable:
        return isinstance(value, get_origin(hint) or hint)
    return callable(value)


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return "integers"
    return _WORDS.get(hint, "from Python a function that makes one")
