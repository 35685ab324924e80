"""What is said of environments that cannot be had."""

import difflib
import sys

import gymnasium

from hogwild_rl.envs import atari

# What pip brings that an environment needs, by a word in its id or entry point.
_ATARI = "ale-py opencv-python-headless"
_NEEDS = {
    "box2d": '"gymnasium[box2d]"',
    "mujoco": '"gymnasium[mujoco]"',
    "ale/": _ATARI,
    "ale_py": _ATARI,
    "noframeskip": _ATARI,
}


def unusable(name: str, error: Exception) -> str:
    """Why an environment cannot be made, and what to do about it, in one line.

    Args:
        name: its id.
        error: what making it raised.
    """
    registered = gymnasium.registry.get(name)
    missing = isinstance(error, gymnasium.error.DependencyNotInstalled | ImportError)
    if missing and ":" in name:
        return f"environment {name}: cannot import {name.partition(':')[0]} ({error})"
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
