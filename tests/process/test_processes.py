"""Environments in processes that are killed, stopped or raise: the others never notice."""

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
    """The environments' processes by name."""
    alive = {process.name: process for process in multiprocessing.active_children()}
    return {name: process for name, process in alive.items() if name.startswith("environment ")}


def kill(number: int) -> None:
    process = environment_processes()[f"environment {number}"]
    process.kill()
    process.join(timeout=30)
    assert process.exitcode is not None


@contextlib.contextmanager
def made(
    make: Callable[[], Any], num_envs: int, pause_s: float = 0.0, **rules: Any
) -> Iterator[tuple[ProcessVectorEnv, list[EnvironmentFailedError]]]:
    """Environments that are replaced after a pause, and what was printed of them."""
    failures: list[EnvironmentFailedError] = []

    def failed(failure: EnvironmentFailedError) -> float:
        failures.append(failure)
        return pause_s

    processes.preload("hogwild_rl.envs.env_process")
    with contextlib.closing(ProcessVectorEnv(make, num_envs, failed=failed, **rules)) as made:
        yield made, failures


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert not environment_processes()


class Pair:
    """Environments in processes beside the same ones in turn, which nothing ever happens to."""

    def __init__(self, disturbed: ProcessVectorEnv) -> None:
        self.disturbed, self.quiet = (
            disturbed,
            vectorize.sync_vector_env("CartPole-v1", disturbed.num_envs),
        )
        seen, expected = disturbed.reset(seed=7)[0], self.quiet.reset(seed=7)[0]
        np.testing.assert_array_equal(seen, expected)
        self._draw = np.random.default_rng(3)

    def step(self, without: int) -> None:
        """One step of both, in which all environments but one must be the same."""
        actions = self._draw.integers(2, size=self.disturbed.num_envs)
        outcomes = zip(self.disturbed.step(actions), self.quiet.step(actions), strict=True)
        others = np.arange(self.disturbed.num_envs) != without
        for name, (mine, theirs) in zip(("seen", "paid", "over", "cut"), outcomes, strict=False):
            np.testing.assert_array_equal(mine[others], theirs[others], err_msg=name)
        assert not self.disturbed.lost[others].any()


def test_one_that_is_killed_comes_back_with_a_seed_of_its_own() -> None:
    with made(cartpole, 3) as (disturbed, failures):
        pair = Pair(disturbed)
        start = disturbed.reset(seed=7)[0][1].copy()
        pair.quiet.reset(seed=7)
        for _ in range(20):
            pair.step(without=-1)
        kill(1)
        pair.step(without=1)
        deadline_s = time.monotonic() + 60
        while disturbed.lost[1]:
            assert time.monotonic() < deadline_s
            pair.step(without=1)
        again = disturbed._observations.arrays[1].copy()
        assert np.abs(again).max() <= 0.05  # where episodes start
        assert not np.array_equal(again, start)
        single = gymnasium.make("CartPole-v1")
        single.reset()
        single.unwrapped.state = again.astype(np.float64)
        for _ in range(5):
            actions = np.ones(3, dtype=np.int64)
            seen, paid, *_ = disturbed.step(actions)
            np.testing.assert_allclose(seen[1], single.step(1)[0], rtol=1e-4, atol=1e-5)
            assert paid[1] == 1
        assert [(each.environment, each.exit_code) for each in failures] == [(1, -signal.SIGKILL)]
        assert failures[0].steps in (19, 20)  # an episode may have ended
        assert failures[0].traceback == ""


@pytest.mark.parametrize("when", ["made", "reset", "stepped"])
def test_one_that_fails_for_ever_holds_nobody_up(when: str) -> None:
    """Each time with a traceback of its own."""
    clock = functools.partial(envs.Cursed, when, everywhere=False)
    with made(clock, 3, pause_s=0.05) as (disturbed, failures):
        seen, _ = disturbed.reset(seed=0)
        deadline_s = time.monotonic() + 60
        steps = 0
        while len(failures) < 3:
            assert time.monotonic() < deadline_s
            seen, paid, *_ = disturbed.step(np.zeros(3, dtype=np.int64))
            steps += 1
            hand = steps % 11  # a step more, which resets
            assert seen.argmax(axis=1)[[0, 2]].tolist() == [hand, hand]
            assert paid[[0, 2]].tolist() == [hand > 0, hand > 0]
            assert disturbed.lost.tolist() in ([False, True, False], [False, False, False])
    assert {(each.environment, each.exit_code, each.steps) for each in failures} == {(1, 1, 0)}
    assert all("RuntimeError: the gearbox is on fire" in each.traceback for each in failures)


def test_the_pause_before_a_replacement_is_kept_and_the_others_go_on() -> None:
    with made(envs.terminated_clock, 2, pause_s=3600) as (disturbed, failures):
        disturbed.reset(seed=0)
        kill(0)
        for step in range(1, 100):
            seen, paid, *_ = disturbed.step(np.zeros(2, dtype=np.int64))
            assert seen[1].argmax() == step % 11
            assert disturbed.lost.tolist() == [True, False]
            assert (seen[0] == 0).all()
            assert paid[0] == 0
        assert environment_processes().keys() == {"environment 1"}
    assert len(failures) == 1


def test_nobody_waits_for_a_new_process_until_it_is_ready() -> None:
    """Drawn seeds are large, with which it never is."""
    with made(functools.partial(envs.Superstitious, large=1000), 2) as (disturbed, failures):
        disturbed.reset(seed=0)
        kill(0)
        for step in range(1, 100):
            seen, *_ = disturbed.step(np.zeros(2, dtype=np.int64))
            assert seen[1].argmax() == step % 11
            assert disturbed.lost.tolist() == [True, False]
        assert environment_processes().keys() == {"environment 0", "environment 1"}
    assert len(failures) == 1


def test_one_that_cannot_be_started_is_tried_again() -> None:
    with made(envs.terminated_clock, 2, pause_s=0.01) as (disturbed, failures):
        disturbed.reset(seed=0)
        kill(0)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            while len(failures) < 3:
                disturbed.step(np.zeros(2, dtype=np.int64))
                assert disturbed.lost.tolist() == [True, False]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        while disturbed.lost[0]:
            disturbed.step(np.zeros(2, dtype=np.int64))
    assert [each.environment for each in failures] == [0] * len(failures)
    assert failures[1].traceback == "its process cannot be started ([Errno 24] Too many open files)"


def test_where_all_are_lost_the_first_to_be_back_is_waited_for() -> None:
    with made(envs.terminated_clock, 2) as (disturbed, failures):
        disturbed.reset(seed=0)
        kill(0)
        kill(1)
        disturbed.step(np.zeros(2, dtype=np.int64))
        assert disturbed.lost.all()
        seen, paid, terminated, truncated, _ = disturbed.step(np.zeros(2, dtype=np.int64))
        back = ~disturbed.lost
        assert back.any()
        assert (seen.argmax(axis=1)[back] == 0).all()
        assert not np.any([paid, terminated, truncated])
    assert sorted(each.environment for each in failures) == [0, 1]


def test_one_that_is_stopped_is_put_down() -> None:
    with made(envs.terminated_clock, 2, step_timeout_s=6.0) as (disturbed, failures):
        disturbed.reset(seed=0)
        disturbed.step(np.zeros(2, dtype=np.int64))
        os.kill(environment_processes()["environment 1"].pid, signal.SIGSTOP)
        disturbed.step(np.zeros(2, dtype=np.int64))
        assert disturbed.lost.tolist() == [False, True]
    (failure,) = failures
    assert (failure.environment, failure.exit_code, failure.steps) == (1, -signal.SIGKILL, 1)
    assert failure.silent_s >= 6


def test_without_another_rule_the_first_failure_is_raised_and_the_others_end() -> None:
    with contextlib.closing(ProcessVectorEnv(envs.DiesInAChild, 3, first=10)) as disturbed:
        with pytest.raises(EnvironmentFailedError) as failure:
            disturbed.reset(seed=0)
        assert failure.value.environment in (10, 11, 12)
        assert failure.value.exit_code == 9


def test_observations_of_parts_are_those_of_environments_in_turn() -> None:
    with made(envs.Nested, 3) as (disturbed, _):
        codec = ObservationCodec.of(disturbed.single_observation_space)
        quiet = vectorize.sync_vector_env(envs.Nested, 3)
        pairs = [(disturbed.reset(seed=0), quiet.reset(seed=0))]
        draw = np.random.default_rng(0)
        for _ in range(40):
            actions = draw.integers(2, size=3)
            mine, theirs = disturbed.step(actions), quiet.step(actions)
            np.testing.assert_array_equal(codec.rows(mine[0]), codec.rows(theirs[0]))
            np.testing.assert_array_equal(mine[1:4], theirs[1:4])
        assert (codec.rows(pairs[0][0][0]) == codec.rows(pairs[0][1][0])).all()
        kill(2)
        seen, *_ = disturbed.step(draw.integers(2, size=3))
        assert codec.rows(seen).shape == (3, *codec.shape)
        assert (seen["pair"][1][2] == 0).all()


def test_an_environment_begins_anew_when_it_is_asked_to() -> None:
    with made(envs.terminated_clock, 3) as (disturbed, _):
        disturbed.reset(seed=0)
        for _ in range(3):
            disturbed.step(np.zeros(3, dtype=np.int64))
        assert vectorize.force_reset(disturbed, 1)
        seen, paid, *_ = disturbed.step(np.zeros(3, dtype=np.int64))
        assert seen.argmax(axis=1).tolist() == [4, 0, 4]
        assert paid.tolist() == [1, 0, 1]


@dataclasses.dataclass
class Notes:
    """What a policy with a memory was shown of it, and where episodes are said to have ended."""

    states: list[torch.Tensor] = dataclasses.field(default_factory=list)
    ended: list[Any] = dataclasses.field(default_factory=list)

    def act(self, rows: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Counts rows in its memory."""
        self.states.append(state[0, :, 0].clone())
        return torch.zeros(len(rows), dtype=torch.int64), state + 1

    def transform_rewards(self, rewards: Any, ended: Any, valid: Any) -> None:
        self.ended.append(ended.copy())


@pytest.mark.parametrize("groups", [1, 2])
def test_rollouts_keep_their_shape_and_count_only_what_came_out(groups: int) -> None:
    """Clocks that die at their 37th step, in all parts of a rollout."""
    T, B, notes = 8, 4, Notes()
    with contextlib.ExitStack() as opened:
        pairs = [opened.enter_context(made(envs.Mortal, B // groups)) for _ in range(groups)]
        several = [disturbed for disturbed, _ in pairs]
        env_codec = EnvCodec(
            ObservationCodec.of(several[0].single_observation_space),
            ActionCodec.of(several[0].single_action_space),
            state_size=1,
            rewards=notes.transform_rewards,
        )
        collector = Collector(several, env_codec, T, 0, lambda _: None)
        kept: dict[str, list[Any]] = {"observations": [], "rewards": [], "terminated": []}
        kept["valid"] = []
        joints, episodes, steps = [], [], 0
        while sum(len(failures) for _, failures in pairs) < 12 or len(kept["valid"]) < 60:
            rollout = collector.collect(notes.act)
            assert rollout.observations.shape == (T + 1, B, 11)
            for name, parts in kept.items():
                parts.append(getattr(rollout, name)[:T].clone().numpy())
            episodes += collector.episodes
            steps += collector.steps
            joints += [rollout.observations[0].clone(), rollout.observations[T].clone()]
            assert collector.nonfinite_envs == []
    assert torch.equal(torch.stack(joints[2::2]), torch.stack(joints[1:-1:2]))
    seen, paid, over, valid = (np.concatenate(kept[name]) for name in kept)
    ended = np.concatenate(notes.ended)
    remembered = torch.stack(notes.states).view(-1, B).numpy()
    hand = seen.argmax(axis=2)
    before, after = slice(0, -1), slice(1, None)
    went = valid[before]
    assert (hand[after][went] == hand[before][went] + 1).all()
    assert (hand[after][valid[after] & ~went] == 0).all()  # a new episode
    assert (seen.sum(axis=2)[valid] == 1).all()
    assert (paid == valid).all()
    assert (over[before] == (went & (hand[after] == 10))).all()
    came_to_nothing = ~went & ~valid[after]  # a step that resets is followed by a valid one
    assert (ended[before] == (over[before] | came_to_nothing)).all()
    assert (remembered[after] == np.where(went, remembered[before] + 1, 0)).all()
    assert set(episodes) == {(10.0, 10)}
    assert len(episodes) == over.sum()
    assert steps == valid.sum()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_one_that_fails_at_its_first_reset_is_not_valid_until_it_is_back(num_envs: int) -> None:
    with made(envs.Superstitious, num_envs) as (disturbed, failures):
        env_codec = EnvCodec(
            ObservationCodec.of(disturbed.single_observation_space),
            ActionCodec.of(disturbed.single_action_space),
        )
        collector = Collector([disturbed], env_codec, 1, 13, lambda _: None)
        nothing = torch.zeros(num_envs, dtype=torch.int64)
        deadline_s = time.monotonic() + 60
        while not (rollout := collector.collect(lambda *_: (nothing, None))).valid[0, 0]:
            assert time.monotonic() < deadline_s
            assert rollout.rewards[0, 0] == 0
        assert rollout.observations[:, 0].argmax(dim=1).tolist() == [0, 1]
        assert rollout.rewards[0, 0] == 1
    assert ["ValueError: 13" in each.traceback for each in failures] == [True]
