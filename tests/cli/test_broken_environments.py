"""Tests that environments that violate gymnasium's API are rejected before writing files."""

import functools
import pathlib
import pickle
import threading
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hogwild_rl import a2c, a3c, ddpg, reinforce, td3
from hogwild_rl.envs import checks, make
from hogwild_rl.errors import UserError
from tests import broken, envs
from tests.cli.conftest import Command
from tests.envs import make_vector_env

ALTERED = [
    (functools.partial(broken.Altered, name), f.printed) for name, f in broken.FAULTS.items()
]
CASES = {**dict(zip(broken.FAULTS, ALTERED, strict=True)), **broken.OTHERS}


@pytest.mark.parametrize(("env", "printed"), CASES.values(), ids=CASES)
def test_broken_environment_gives_a_one_line_error(
    env: Any,
    printed: str,
    error_line: Callable[[Callable[[], Any]], str],
    tmp_path: pathlib.Path,
) -> None:
    """From Python: exit code 2, one line that contains the environment's name, and no folder."""
    folder = tmp_path / "run"
    pickle.dumps(env)  # must succeed, or this would cause the error
    error = error_line(lambda: a3c.train(a3c.Config(env=env, workers=1, run_dir=str(folder))))
    assert printed in error
    assert make.name_of(env) in error
    assert not folder.exists()


@pytest.mark.parametrize("number", range(len(broken.FAULTS)), ids=broken.FAULTS)
def test_broken_environment_id_gives_a_one_line_error(
    number: int, refused: Command, tmp_path: pathlib.Path
) -> None:
    """From the command line: gymnasium's wrappers around it fail first."""
    env, folder = f"tests.broken:Altered{number}-v0", tmp_path / "run"
    error = refused("a2c", "--env", env, "--run-dir", str(folder))
    assert list(broken.FAULTS.values())[number].printed in error
    assert env in error
    assert not folder.exists()


@pytest.mark.parametrize("algorithm", [a2c, a3c, ddpg, reinforce, td3])
def test_every_algorithm_rejects_broken_envs(algorithm: Any, tmp_path: pathlib.Path) -> None:
    env, folder = functools.partial(broken.Altered, "reward None"), tmp_path / "run"
    with pytest.raises(UserError, match="a number as reward, got None"):
        algorithm.train(algorithm.Config(env=env, run_dir=str(folder)))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("env", "printed"),
    [
        (functools.partial(envs.Chain, threading.Lock()), "cannot be sent to workers"),
        ("Altered-v0", "unknown environment 'Altered-v0'"),
        ("tests.broken:Altered-v0", "unknown environment"),
        ("tests.no_such_module:Altered-v0", "cannot import tests.no_such_module"),
        ("tests.failing_import:X-v0", "importing tests.failing_import raised ZeroDivisionError"),
        ("", "unknown environment ''"),
    ],
)
def test_invalid_env_setting_gives_a_one_line_error(
    env: Any,
    printed: str,
    error_line: Callable[[Callable[[], Any]], str],
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "run"
    assert printed in error_line(lambda: a3c.train(a3c.Config(env=env, run_dir=str(folder))))
    assert not folder.exists()


TOLERATED: dict[str, broken.Fault] = {
    "float64 observation": broken.bad_obs("", np.zeros(5)),
    "int64 observation": broken.bad_obs("", np.zeros(5, np.int64)),
    "observation out of bounds": broken.bad_obs("", np.full(5, 7, np.float32)),
    "NumPy integer observation": broken.bad_obs("", np.int32(2), lambda: spaces.Discrete(3)),
    "scalar observation": broken.bad_obs("", 0.5, lambda: spaces.Box(0, 1, ())),
    "list as tuple observation": broken.bad_obs("", [broken.two, 2], broken.tuple_space),
    "integer reward": broken.bad_step("", 1, 1),
    "NumPy reward": broken.bad_step("", 1, np.array(1.0)),
    "NaN reward": broken.bad_step("", 1, np.nan),
    "NaN observation": broken.bad_step("", 0, broken.five + np.nan),
    "terminated 1": broken.bad_step("", 2, 1),
    "NumPy terminated": broken.bad_step("", 2, np.array(True)),
    "truncated 0": broken.bad_step("", 3, 0),
    "unbounded actions": broken.bad_space(
        "", lambda: spaces.Box(-np.inf, np.inf, (2,)), "action_space"
    ),
    "discrete actions from 1": broken.bad_space(
        "", lambda: spaces.Discrete(2, start=1), "action_space"
    ),
}


@pytest.mark.parametrize("fault", TOLERATED)
def test_usable_environment_passes_the_check(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vector environments can step it."""
    monkeypatch.setitem(broken.FAULTS, fault, TOLERATED[fault])
    env = functools.partial(broken.Altered, fault)
    assert make.inspect_env(env).name == "tests.broken.Altered"
    stepped = make_vector_env(env, 2)
    stepped.reset(seed=0)
    for _ in range(3):
        stepped.step(stepped.action_space.sample())


def test_check_takes_few_steps() -> None:
    """Two resets and at most 10 steps; none with `played=False`."""
    env = Counting()
    checks.check(env, "Counting")
    assert env.resets == 2
    assert 1 <= env.steps <= 10
    checks.check(env, "Counting", played=False)
    assert env.resets == 2


def test_check_preserves_the_random_state_of_the_action_space() -> None:
    env = Counting()
    env.action_space.seed(3)
    before = env.action_space.np_random.bit_generator.state
    checks.check(env, "Counting")
    assert env.action_space.np_random.bit_generator.state == before


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_gymnasium_environments_pass_the_check(name: str) -> None:
    with gymnasium.make(name, disable_env_checker=True) as env:
        checks.check(env, name)


class Counting(envs.Chain):
    """Counts resets and steps."""

    resets = steps = 0

    def reset(self, **options: Any) -> Any:
        self.resets += 1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        return super().step(1)
