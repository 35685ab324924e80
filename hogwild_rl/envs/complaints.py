"""What is said of environments that cannot be had, or not be trained on."""

import difflib
import pathlib
import sys
import traceback
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from hogwild_rl.envs import atari
from hogwild_rl.envs.actions import one_line

# What pip brings that an environment needs, by a word in its id or entry point.
_ATARI = "ale-py opencv-python-headless"
_NEEDS = {
    "box2d": '"gymnasium[box2d]"',
    "mujoco": '"gymnasium[mujoco]"',
    "ale/": _ATARI,
    "ale_py": _ATARI,
    "noframeskip": _ATARI,
}

_LONGEST = 300  # characters of what others printed


def unusable(name: str, error: BaseException) -> str:
    """Why an environment cannot be made, and what to do about it, in one line.

    Args:
        name: its id.
        error: what finding or making it raised.
    """
    registered = gymnasium.registry.get(name)
    missing = isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError)
    if missing and ":" in name:
        return f"environment {name}: cannot import {name.partition(':')[0]} ({error})"
    if not isinstance(error, gymnasium.error.Error | ImportError):
        return f"environment {name}: importing {name.rpartition(':')[0]} raised {raised(error)}"
    hint = f"{name} {registered.entry_point if registered else ''}".lower()
    packages = next((packages for word, packages in _NEEDS.items() if word in hint), None)
    if packages and (missing or (packages == _ATARI and not atari.installed())):
        return f"environment {name} needs an extra: {sys.executable} -m pip install {packages}"
    if missing:
        return f"environment {name} needs a package that is not installed: {error}"
    matches = difflib.get_close_matches(
        name.rpartition(":")[2], gymnasium.registry, n=3, cutoff=0.5
    )
    near = f"; did you mean {' or '.join(matches)}?" if matches else ""
    return f"unknown environment {name!r}{near or ': give a registered id or module:Id'}"


def raised(error: BaseException) -> str:
    """An exception and where it was raised, in one line."""
    text = short(f"{type(error).__name__}: {error}").removesuffix(":")
    ours = str(pathlib.Path(__file__).parents[1])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if ours not in f.filename]
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    return text + where


def short(value: Any) -> str:
    """A space or an observation as printed, on one line that is not too long."""
    if isinstance(value, spaces.Box):
        return f"a Box of {list(value.shape)} {value.dtype}"
    text = one_line(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def kind(value: Any) -> str:
    """What something is, for messages."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, np.ndarray):
        return f"an array of {list(value.shape)} {value.dtype}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    name = type(value).__name__
    if type(value).__module__ not in ("builtins", "numpy"):
        return f"{type(value).__module__}.{name}"
    plain = isinstance(value, str | bool | int | float | np.generic)
    return f"{name} {short(repr(value) if isinstance(value, str) else value)}" if plain else name
