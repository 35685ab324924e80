"""Tests of training and acting on all environments of gymnasium and on five Atari games."""

import itertools
import pathlib
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from hogwild_rl import a2c, a3c
from hogwild_rl.envs import atari, make

pytestmark = pytest.mark.long

STEPS = 5_000
FAMILIES = {"classic_control": None, "toy_text": None, "box2d": "Box2D"}  # required package
GAMES = ["Pong", "Breakout", "SpaceInvaders", "Qbert", "Freeway"]
SLOW = {"CarRacing-v3", *(f"ALE/{game}-v5" for game in GAMES if game != "Breakout")}


def newest(family: str) -> list[str]:
    """Returns the newest version of every id of a family."""
    versions: dict[str, int] = {}
    for name, spec in gymnasium.registry.items():
        if str(spec.entry_point).startswith(f"gymnasium.envs.{family}."):
            base, version = re.fullmatch(r"(.+)-v(\d+)", name).groups()
            versions[base] = max(versions.get(base, 0), int(version))
    assert versions, family
    return [f"{base}-v{version}" for base, version in versions.items()]


def cases() -> list[Any]:
    found = []
    names = [(name, needs) for family, needs in FAMILIES.items() for name in newest(family)]
    names += [(f"ALE/{game}-v5", "ale_py") for game in GAMES]
    for (name, needs), algorithm in itertools.product(names, ("a3c", "a2c")):
        marks = [pytest.mark.slow] if name in SLOW else []
        found.append(pytest.param(name, needs, algorithm, id=f"{name}-{algorithm}", marks=marks))
    return found


def test_every_family_contains_its_known_environments() -> None:
    """Environments would not be tested if gymnasium changed their entry points."""
    names = {family: set(newest(family)) for family in FAMILIES}
    assert names["classic_control"] >= {"CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"}
    assert {name.partition("-")[0] for name in names["toy_text"]} >= {"Blackjack", "FrozenLake"}
    assert {name.partition("-")[0] for name in names["box2d"]} >= {"BipedalWalker", "CarRacing"}


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Box2D and pygame
@pytest.mark.parametrize(("name", "needs", "algorithm"), cases())
def test_an_agent_trains_and_acts(
    name: str, needs: str | None, algorithm: str, tmp_path: pathlib.Path
) -> None:
    if needs is not None:
        pytest.importorskip(needs)
    settings: dict[str, Any] = {
        "env": name,
        "total_timesteps": STEPS,
        "run_dir": str(tmp_path / "run"),
        "quiet": True,
    }
    config: Any
    if algorithm == "a3c":
        config = a3c.Config(workers=2, envs_per_worker=2, **settings)
        agent = a3c.train(config)
    else:
        config = a2c.Config(num_envs=4, **settings)
        agent = a2c.train(config)
    counters = agent.checkpoint.counters
    assert counters.steps >= STEPS
    assert counters.updates >= STEPS / (4 * 128)  # 128: longest rollout of the presets
    assert counters.dropped == 0
    initial = config.model(make.inspect_env(name)).state_dict()
    assert {
        key
        for key, value in initial.items()
        if torch.equal(value, agent.checkpoint.parameters[key])
    } == set()
    env = agent.make_env()
    observation, _ = env.reset(seed=0)
    actions = []
    for _ in range(5):
        action = agent.act(observation, deterministic=False)
        assert env.action_space.contains(action)
        observation, _, terminated, truncated, _ = env.step(action)
        actions.append(np.asarray(agent.act(observation)))
        if terminated or truncated:
            observation, _ = env.reset()
    env.close()
    assert all(np.isfinite(action).all() for action in actions)
    assert atari.is_game(make.resolve(name)) == name.startswith("ALE/")
