"""Environments that break gymnasium's contract are refused before anything is written."""

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
from hogwild_rl.envs import checks, make, vectorize
from hogwild_rl.errors import UserError
from tests import broken, envs
from tests.cli.conftest import Command

ALTERED = [
    (functools.partial(broken.Altered, name), f.printed) for name, f in broken.FAULTS.items()
]
CASES = {**dict(zip(broken.FAULTS, ALTERED, strict=True)), **broken.OTHERS}


@pytest.mark.parametrize(("env", "printed"), CASES.values(), ids=CASES)
def test_a_broken_environment_gets_one_line(
    env: Any,
    printed: str,
    one_line: Callable[[Callable[[], Any]], str],
    tmp_path: pathlib.Path,
) -> None:
    """From Python: exit code 2, one line that names the environment, and no folder."""
    folder = tmp_path / "run"
    pickle.dumps(env)  # or it would be refused for that
    said = one_line(lambda: a3c.train(a3c.Config(env=env, workers=1, run_dir=str(folder))))
    assert printed in said
    assert make.name_of(env) in said
    assert not folder.exists()


@pytest.mark.parametrize("number", range(len(broken.FAULTS)), ids=broken.FAULTS)
def test_an_id_of_a_broken_environment_gets_one_line(
    number: int, refused: Command, tmp_path: pathlib.Path
) -> None:
    """From the command line, where gymnasium's wrappers lie around it and stumble first."""
    env, folder = f"tests.broken:Altered{number}-v0", tmp_path / "run"
    said = refused("a2c", "--env", env, "--run-dir", str(folder))
    assert list(broken.FAULTS.values())[number].printed in said
    assert env in said
    assert not folder.exists()


@pytest.mark.parametrize("algorithm", [a2c, a3c, ddpg, reinforce, td3])
def test_every_algorithm_refuses(algorithm: Any, tmp_path: pathlib.Path) -> None:
    env, folder = functools.partial(broken.Altered, "no reward"), tmp_path / "run"
    with pytest.raises(UserError, match="a number as reward, got None"):
        algorithm.train(algorithm.Config(env=env, run_dir=str(folder)))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("env", "printed"),
    [
        (lambda: envs.Clock(True), "cannot be sent to workers"),
        (functools.partial(envs.Chain, threading.Lock()), "cannot be sent to workers"),
        ("Altered-v0", "unknown environment 'Altered-v0'"),
        ("tests.broken:Altered-v0", "unknown environment"),
        ("tests.no_such_module:Altered-v0", "cannot import tests.no_such_module"),
        ("tests.stumbling:Altered-v0", "importing tests.stumbling raised ZeroDivisionError"),
        ("", "unknown environment ''"),
    ],
)
def test_what_makes_no_environment_gets_one_line(
    env: Any,
    printed: str,
    one_line: Callable[[Callable[[], Any]], str],
    tmp_path: pathlib.Path,
) -> None:
    folder = tmp_path / "run"
    assert printed in one_line(lambda: a3c.train(a3c.Config(env=env, run_dir=str(folder))))
    assert not folder.exists()


TOLERATED: dict[str, broken.Fault] = {
    "doubles": broken.seen("", np.zeros(5)),
    "whole numbers": broken.seen("", np.zeros(5, np.int64)),
    "out of bounds": broken.seen("", np.full(5, 7, np.float32)),
    "a choice of numpy's": broken.seen("", np.int32(2), lambda: spaces.Discrete(3)),
    "a number alone": broken.seen("", 0.5, lambda: spaces.Box(0, 1, ())),
    "a list of parts": broken.seen("", [broken.two, 2], broken.pair),
    "a whole number as reward": broken.stepped("", 1, 1),
    "a reward of numpy's": broken.stepped("", 1, np.array(1.0)),
    "NaN as reward": broken.stepped("", 1, np.nan),
    "a step to NaN": broken.stepped("", 0, broken.five + np.nan),
    "terminated 1": broken.stepped("", 2, 1),
    "terminated of numpy's": broken.stepped("", 2, np.array(True)),
    "truncated 0": broken.stepped("", 3, 0),
    "actions without bounds": broken.space(
        "", lambda: spaces.Box(-np.inf, np.inf, (2,)), "action_space"
    ),
    "a choice that begins at 1": broken.space(
        "", lambda: spaces.Discrete(2, start=1), "action_space"
    ),
}


@pytest.mark.parametrize("fault", TOLERATED)
def test_what_can_be_learnt_from_is_let_through(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And vector environments indeed step it."""
    monkeypatch.setitem(broken.FAULTS, fault, TOLERATED[fault])
    env = functools.partial(broken.Altered, fault)
    assert make.inspect_env(env).name == "tests.broken.Altered"
    stepped = vectorize.make_vector_env(env, 2)
    stepped.reset(seed=0)
    for _ in range(3):
        stepped.step(stepped.action_space.sample())


def test_a_trial_is_short() -> None:
    """Two beginnings and a few steps; what gymnasium itself tests is not even begun."""
    counted = Counting()
    checks.check(counted, "counted")
    assert counted.resets == 2
    assert 1 <= counted.steps <= 10
    checks.check(counted, "counted", played=False)
    assert counted.resets == 2


def test_a_trial_leaves_the_stream_of_actions_alone() -> None:
    env = Counting()
    env.action_space.seed(3)
    before = env.action_space.np_random.bit_generator.state
    checks.check(env, "counted")
    assert env.action_space.np_random.bit_generator.state == before


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_gymnasiums_own_would_pass_the_trial(name: str) -> None:
    with gymnasium.make(name, disable_env_checker=True) as env:
        checks.check(env, name)


class Counting(envs.Chain):
    """Counts what is done with it."""

    resets = steps = 0

    def reset(self, **options: Any) -> Any:
        self.resets += 1
        return super().reset(**options)

    def step(self, action: Any) -> Any:
        self.steps += 1
        return super().step(1)
