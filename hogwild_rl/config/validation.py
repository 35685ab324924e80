"""Type and range checks of settings."""

import math
import numbers
import types
from collections import abc
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np

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


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def check_type(name: str, value: Any, hint: Any) -> Any:
    """The value, if it is of that kind; a whole number also where it is written as 1e6.

    Args:
        name: of the setting, for the message.
        value: from a command line, a file or Python.
        hint: int, float, bool, str, a tuple of these, a Literal, None, a class, or a union.

    Raises:
        UserError: it is of another.

    >>> check_type("workers", 4.0, int)
    4
    """
    allowed = _alternatives(hint)
    if any(_fits(value, kind) for kind in allowed):
        return value
    if int in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    words = [word for kind in allowed if get_origin(kind) is Literal for word in get_args(kind)]
    if words and isinstance(value, str):
        numbers = ", or a number" if float in allowed else ""
        raise UserError(f"{name} must be one of {', '.join(words)}{numbers}, got {value!r}")
    wanted = " or ".join(dict.fromkeys(_word(kind) for kind in allowed if kind is not type(None)))
    raise UserError(f"{name} must be {wanted}, got {value!r}")


def _alternatives(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [each for part in get_args(hint) for each in _alternatives(part)]
    return [hint]


def _fits(value: Any, kind: Any) -> bool:
    if kind in (bool, int, float):
        abstract = {bool: bool | np.bool_, int: numbers.Integral, float: numbers.Real}[kind]
        return isinstance(value, abstract) and (kind is bool or not isinstance(value, bool))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is tuple:
        each = get_args(kind)[0]
        return isinstance(value, tuple | list) and all(_fits(part, each) for part in value)
    if isinstance(get_origin(kind) or kind, type) and get_origin(kind) is not abc.Callable:
        return isinstance(value, get_origin(kind) or kind)
    return callable(value)


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return "whole numbers"
    return _WORDS.get(kind, "what makes one, from Python")
