"""Tests of ProcessVectorEnv: killed, stopped or raising environments do not affect the others."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from hogwild_rl.collect.rollout import Collector
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.envs.env_process import EnvironmentFailedError
from hogwild_rl.envs.subproc import ProcessVectorEnv
from hogwild_rl.hogwild import processes
from tests import envs

cartpole = functools.partial(make.make_env, "CartPole-v1")


def environment_processes() -> dict[str, Any]:
    """Running environment processes by name."""
    alive = {process.name: process for process in multiprocessing.active_children()}
    return {name: process for name, process in alive.items() if name.startswith("environment ")}


def kill(number: int) -> None:
    process = environment_processes()[f"environment {number}"]
    process.kill()
    process.join(timeout=30)
    assert process.exitcode is not None


@contextlib.contextmanager
def run_envs(
    make: Callable[[], Any], num_envs: int, pause_s: float = 0.0, **options: Any
) -> Iterator[tuple[ProcessVectorEnv, list[EnvironmentFailedError]]]:
    """Vector environment that replaces failed environments after a pause, and their failures."""
    failures: list[EnvironmentFailedError] = []

    def failed(failure: EnvironmentFailedError) -> float:
        failures.append(failure)
        return pause_s

    processes.preload("hogwild_rl.envs.env_process")
    with contextlib.closing(ProcessVectorEnv(make, num_envs, failed=failed, **options)) as venv:
        yield venv, failures


@pytest.fixture(autouse=True)
def _no_process_remains() -> Iterator[None]:
    yield
    assert not environment_processes()


class EnvPair:
    """The tested vector environment and an undisturbed synchronous reference, equally seeded."""

    def __init__(self, venv: ProcessVectorEnv) -> None:
        self.venv, self.reference = (venv, vectorize.sequential("CartPole-v1", venv.num_envs))
        obs, expected = venv.reset(seed=7)[0], self.reference.reset(seed=7)[0]
        np.testing.assert_array_equal(obs, expected)
        self._rng = np.random.default_rng(3)

    def step(self, without: int) -> None:
        """Steps both; all environments except `without` must agree."""
        actions = self._rng.integers(2, size=self.venv.num_envs)
        outcomes = zip(self.venv.step(actions), self.reference.step(actions), strict=True)
        others = np.arange(self.venv.num_envs) != without
        names = ("observations", "rewards", "terminated", "truncated")
        for name, (actual, expected) in zip(names, outcomes, strict=False):
            np.testing.assert_array_equal(actual[others], expected[others], err_msg=name)
        assert not self.venv.lost[others].any()


def test_killed_environment_is_replaced_with_a_new_seed() -> None:
    with run_envs(cartpole, 3) as (venv, failures):
        pair = EnvPair(venv)
        start = venv.reset(seed=7)[0][1].copy()
        pair.reference.reset(seed=7)
        for _ in range(20):
            pair.step(without=-1)
        kill(1)
        pair.step(without=1)
        deadline_s = time.monotonic() + 60
        while venv.lost[1]:
            assert time.monotonic() < deadline_s
            pair.step(without=1)
        restarted = venv._observations.arrays[1].copy()
        assert np.abs(restarted).max() <= 0.05  # initial state distribution
        assert not np.array_equal(restarted, start)
        single = gymnasium.make("CartPole-v1")
        single.reset()
        single.unwrapped.state = restarted.astype(np.float64)
        for _ in range(5):
            actions = np.ones(3, dtype=np.int64)
            obs, rewards, *_ = venv.step(actions)
            np.testing.assert_allclose(obs[1], single.step(1)[0], rtol=1e-4, atol=1e-5)
            assert rewards[1] == 1
        (failed,) = failures
        assert (failed.failure.index, failed.failure.exit_code) == (1, -signal.SIGKILL)
        assert failed.steps in (19, 20)  # an episode may have ended
        assert failed.failure.traceback == ""


@pytest.mark.parametrize("when", ["made", "reset", "stepped"])
def test_environment_that_always_fails_does_not_block_the_others(when: str) -> None:
    """Each failure has its own traceback."""
    make_clock = functools.partial(envs.FailingClock, when, everywhere=False)
    with run_envs(make_clock, 3, pause_s=0.05) as (venv, failures):
        obs, _ = venv.reset(seed=0)
        deadline_s = time.monotonic() + 60
        steps = 0
        while len(failures) < 3:
            assert time.monotonic() < deadline_s
            obs, rewards, *_ = venv.step(np.zeros(3, dtype=np.int64))
            steps += 1
            position = steps % 11  # 10 steps and one that resets
            assert obs.argmax(axis=1)[[0, 2]].tolist() == [position, position]
            assert rewards[[0, 2]].tolist() == [position > 0, position > 0]
            assert venv.lost.tolist() in ([False, True, False], [False, False, False])
    found = {(each.failure.index, each.failure.exit_code, each.steps) for each in failures}
    assert found == {(1, 1, 0)}
    assert all("RuntimeError: simulated failure" in each.failure.traceback for each in failures)


def test_replacement_starts_after_the_pause_while_the_others_continue() -> None:
    with run_envs(envs.terminated_clock, 2, pause_s=3600) as (venv, failures):
        venv.reset(seed=0)
        kill(0)
        for step in range(1, 100):
            obs, rewards, *_ = venv.step(np.zeros(2, dtype=np.int64))
            assert obs[1].argmax() == step % 11
            assert venv.lost.tolist() == [True, False]
            assert (obs[0] == 0).all()
            assert rewards[0] == 0
        assert environment_processes().keys() == {"environment 1"}
    assert len(failures) == 1


def test_steps_do_not_wait_for_a_starting_replacement() -> None:
    """Replacements have large random seeds, with which this environment never becomes ready."""
    with run_envs(functools.partial(envs.SeedSensitiveClock, large=1000), 2) as (venv, failures):
        venv.reset(seed=0)
        kill(0)
        for step in range(1, 100):
            obs, *_ = venv.step(np.zeros(2, dtype=np.int64))
            assert obs[1].argmax() == step % 11
            assert venv.lost.tolist() == [True, False]
        assert environment_processes().keys() == {"environment 0", "environment 1"}
    assert len(failures) == 1


def test_failed_process_start_is_retried() -> None:
    with run_envs(envs.terminated_clock, 2, pause_s=0.01) as (venv, failures):
        venv.reset(seed=0)
        kill(0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            while len(failures) < 3:
                venv.step(np.zeros(2, dtype=np.int64))
                assert venv.lost.tolist() == [True, False]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while venv.lost[0]:
            venv.step(np.zeros(2, dtype=np.int64))
    assert [each.failure.index for each in failures] == [0] * len(failures)
    expected = "its process cannot be started ([Errno 24] Too many open files)"
    assert failures[1].failure.traceback == expected


def test_step_waits_for_the_first_replacement_if_all_are_lost() -> None:
    with run_envs(envs.terminated_clock, 2) as (venv, failures):
        venv.reset(seed=0)
        kill(0)
        kill(1)
        venv.step(np.zeros(2, dtype=np.int64))
        assert venv.lost.all()
        obs, rewards, terminated, truncated, _ = venv.step(np.zeros(2, dtype=np.int64))
        back = ~venv.lost
        assert back.any()
        assert (obs.argmax(axis=1)[back] == 0).all()
        assert not np.any([rewards, terminated, truncated])
    assert sorted(each.failure.index for each in failures) == [0, 1]


def test_stopped_environment_is_killed_after_the_timeout() -> None:
    with run_envs(envs.terminated_clock, 2, step_timeout_s=6.0) as (venv, failures):
        venv.reset(seed=0)
        venv.step(np.zeros(2, dtype=np.int64))
        os.kill(environment_processes()["environment 1"].pid, signal.SIGSTOP)
        venv.step(np.zeros(2, dtype=np.int64))
        assert venv.lost.tolist() == [False, True]
    (failure,) = failures
    process, steps = failure.failure, failure.steps
    assert (process.index, process.exit_code, steps) == (1, -signal.SIGKILL, 1)
    assert process.silent_s >= 6


def test_first_failure_is_raised_by_default_and_the_others_exit() -> None:
    with contextlib.closing(ProcessVectorEnv(envs.ExitsInChild, 3, first=10)) as venv:
        with pytest.raises(EnvironmentFailedError) as failure:
            venv.reset(seed=0)
        assert failure.value.failure.index in (10, 11, 12)
        assert failure.value.failure.exit_code == 9


def test_composite_observations_equal_those_of_sync_vector_env() -> None:
    with run_envs(envs.Nested, 3) as (venv, _):
        codec = ObservationCodec.of(venv.single_observation_space)
        reference = vectorize.sequential(envs.Nested, 3)
        pairs = [(venv.reset(seed=0), reference.reset(seed=0))]
        rng = np.random.default_rng(0)
        for _ in range(40):
            actions = rng.integers(2, size=3)
            actual, expected = venv.step(actions), reference.step(actions)
            np.testing.assert_array_equal(codec.rows(actual[0]), codec.rows(expected[0]))
            np.testing.assert_array_equal(actual[1:4], expected[1:4])
        assert (codec.rows(pairs[0][0][0]) == codec.rows(pairs[0][1][0])).all()
        kill(2)
        obs, *_ = venv.step(rng.integers(2, size=3))
        assert codec.rows(obs).shape == (3, *codec.shape)
        assert (obs["pair"][1][2] == 0).all()


def test_force_reset_starts_a_new_episode() -> None:
    with run_envs(envs.terminated_clock, 3) as (venv, _):
        venv.reset(seed=0)
        for _ in range(3):
            venv.step(np.zeros(3, dtype=np.int64))
        assert vectorize.force_reset(venv, 1)
        obs, rewards, *_ = venv.step(np.zeros(3, dtype=np.int64))
        assert obs.argmax(axis=1).tolist() == [4, 0, 4]
        assert rewards.tolist() == [1, 0, 1]


@dataclasses.dataclass
class Recorder:
    """Records the states passed to a recurrent policy and the reported ends of episodes."""

    states: list[torch.Tensor] = dataclasses.field(default_factory=list)
    ended: list[Any] = dataclasses.field(default_factory=list)

    def act(self, rows: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns zero actions and the incremented state."""
        self.states.append(state[0, :, 0].clone())
        return torch.zeros(len(rows), dtype=torch.int64), state + 1

    def transform_rewards(self, rewards: Any, ended: Any, valid: Any) -> None:
        self.ended.append(ended.copy())


@pytest.mark.parametrize("groups", [1, 2])
def test_rollouts_keep_their_shape_and_count_only_valid_steps(groups: int) -> None:
    """Environments exit at their 37th step, at varying positions in a rollout."""
    T, B, recorder = 8, 4, Recorder()
    with contextlib.ExitStack() as stack:
        make_group = functools.partial(run_envs, envs.ExitingClock, B // groups)
        pairs = [stack.enter_context(make_group()) for _ in range(groups)]
        venvs = [venv for venv, _ in pairs]
        env_codec = EnvCodec(
            ObservationCodec.of(venvs[0].single_observation_space),
            ActionCodec.of(venvs[0].single_action_space),
            state_size=1,
            rewards=recorder.transform_rewards,
        )
        collector = Collector(venvs, env_codec, T, 0, lambda *_: None)
        recorded: dict[str, list[Any]] = {"observations": [], "rewards": [], "terminated": []}
        recorded["valid"] = []
        boundaries, episodes, steps = [], [], 0
        while sum(len(failures) for _, failures in pairs) < 12 or len(recorded["valid"]) < 60:
            rollout = collector.collect(recorder.act)
            assert rollout.observations.shape == (T + 1, B, 11)
            for name, parts in recorded.items():
                parts.append(getattr(rollout, name)[:T].clone().numpy())
            episodes += collector.episodes
            steps += collector.steps
            boundaries += [rollout.observations[0].clone(), rollout.observations[T].clone()]
            assert collector.nonfinite_envs == []
    assert torch.equal(torch.stack(boundaries[2::2]), torch.stack(boundaries[1:-1:2]))
    obs, rewards, terminated, valid = (np.concatenate(recorded[name]) for name in recorded)
    ended = np.concatenate(recorder.ended)
    states = torch.stack(recorder.states).view(-1, B).numpy()
    position = obs.argmax(axis=2)
    before, after = slice(0, -1), slice(1, None)
    stepped = valid[before]
    assert (position[after][stepped] == position[before][stepped] + 1).all()
    assert (position[after][valid[after] & ~stepped] == 0).all()  # a new episode
    assert (obs.sum(axis=2)[valid] == 1).all()
    assert (rewards == valid).all()
    assert (terminated[before] == (stepped & (position[after] == 10))).all()
    lost = ~stepped & ~valid[after]  # a step that resets is followed by a valid one
    assert (ended[before] == (terminated[before] | lost)).all()
    assert (states[after] == np.where(stepped, states[before] + 1, 0)).all()
    assert set(episodes) == {(10.0, 10)}
    assert len(episodes) == terminated.sum()
    assert steps == valid.sum()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_environment_that_fails_its_first_reset_is_invalid_until_replaced(num_envs: int) -> None:
    with run_envs(envs.SeedSensitiveClock, num_envs) as (venv, failures):
        env_codec = EnvCodec(
            ObservationCodec.of(venv.single_observation_space),
            ActionCodec.of(venv.single_action_space),
        )
        collector = Collector([venv], env_codec, 1, 13, lambda *_: None)
        actions = torch.zeros(num_envs, dtype=torch.int64)
        deadline_s = time.monotonic() + 60
        while not (rollout := collector.collect(lambda *_: (actions, None))).valid[0, 0]:
            assert time.monotonic() < deadline_s
            assert rollout.rewards[0, 0] == 0
        assert rollout.observations[:, 0].argmax(dim=1).tolist() == [0, 1]
        assert rollout.rewards[0, 0] == 1
    assert ["ValueError: 13" in each.failure.traceback for each in failures] == [True]
