"""Advantage actor-critic, asynchronous on the cores you have or batched on one device.

    from hogwild_rl import a3c
    agent = a3c.train(a3c.Config(env="CartPole-v1", workers=4))
    agent.save("cartpole.pt")

Importing the package loads neither torch nor gymnasium: names below are fetched when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hogwild_rl import a2c as a2c
    from hogwild_rl import a3c as a3c
    from hogwild_rl import ddpg as ddpg
    from hogwild_rl import ppo as ppo
    from hogwild_rl import reinforce as reinforce
    from hogwild_rl import td3 as td3
    from hogwild_rl.errors import UserError as UserError
    from hogwild_rl.runs.agent import Agent as Agent
    from hogwild_rl.runs.agent import load as load

__version__ = "0.2.0"
__all__ = ["Agent", "UserError", "a2c", "a3c", "ddpg", "load", "ppo", "reinforce", "td3"]

_HOMES = {
    "Agent": "hogwild_rl.runs.agent",
    "load": "hogwild_rl.runs.agent",
    "UserError": "hogwild_rl.errors",
}
_MODULES = {"a2c", "a3c", "ddpg", "ppo", "reinforce", "td3"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"hogwild_rl.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hogwild_rl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
