"""Tests of environments stepped in turn against gymnasium's SyncVectorEnv."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hogwild_rl.collect.rollout import Collector
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from tests import envs

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from Box2D

ENVIRONMENTS: dict[str, make.EnvSource] = {
    "CartPole": "CartPole-v1",
    "truncated": functools.partial(gymnasium.make, "LunarLander-v3", max_episode_steps=30),
    "continuous": functools.partial(gymnasium.make, "Pendulum-v1", max_episode_steps=7),
    "nested": envs.Nested,
}
B, STEPS = 3, 100


def pair(source: make.EnvSource) -> tuple[vectorize.SequentialVectorEnv, Any]:
    """The environments, and the same in a SyncVectorEnv."""
    if source is ENVIRONMENTS["truncated"]:
        pytest.importorskip("Box2D")
    makers = [functools.partial(make.make_env, source)] * B
    sync = SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)
    return vectorize.sequential(source, B), sync


def assert_equal(one: Any, other: Any) -> None:
    """Asserts that two batches of observations have equal structure, dtypes and values."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        one, other = tuple(one.values()), tuple(other.values())
    if isinstance(one, tuple):
        for part, another in zip(one, other, strict=True):
            assert_equal(part, another)
    else:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_episodes_equal_those_of_sync_vector_env(name: str) -> None:
    ours, sync = pair(ENVIRONMENTS[name])
    sync.action_space.seed(0)
    assert (ours.observation_space, ours.action_space) == (
        sync.observation_space,
        sync.action_space,
    )
    assert ours.metadata == sync.metadata
    ends = np.zeros(B)
    for seed in (5, None):
        assert_equal(ours.reset(seed=seed)[0], sync.reset(seed=seed)[0])
        for _ in range(STEPS):
            actions = sync.action_space.sample()
            outcome, expected = ours.step(actions), sync.step(actions)
            assert_equal(outcome[:4], expected[:4])
            ends += outcome[2] | outcome[3]
    assert (ends > 2).all()
    ours.close()
    sync.close()


class Options(envs.Clock):
    """Returns the options of its reset as observation."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        return observation * 0 + (options or {"start": 0})["start"], info


def test_options_of_a_reset_reach_the_environments() -> None:
    ours, sync = pair(functools.partial(Options, True))
    for options in ({"start": 1}, None):
        assert_equal(ours.reset(options=options)[0], sync.reset(options=options)[0])


@pytest.mark.parametrize("name", ["CartPole", "truncated", "continuous"])
def test_collected_rows_equal_the_steps_of_sync_vector_env(name: str) -> None:
    """The collector writes each outcome directly into its row."""
    ours, sync = pair(ENVIRONMENTS[name])
    codec = EnvCodec(
        ObservationCodec.of(ours.single_observation_space), ActionCodec.of(ours.single_action_space)
    )
    sync.action_space.seed(0)
    collector = Collector([ours], codec, 10, 7, lambda *_: None, arrays=True)
    observation = sync.reset(seed=7)[0]
    for _ in range(STEPS // 10):
        rollout = collector.collect(lambda rows, state: (sync.action_space.sample(), state))
        valid = []
        for t in range(10):
            np.testing.assert_array_equal(rollout.observations[t], observation)
            taken = codec.actions.to_env(rollout.actions[t].numpy())
            observation, rewards, terminated, truncated, _ = sync.step(taken)
            np.testing.assert_array_equal(rollout.rewards[t], np.float32(rewards))
            np.testing.assert_array_equal(rollout.terminated[t], terminated)
            np.testing.assert_array_equal(rollout.truncated[t], truncated)
            valid.append(rollout.valid[t].numpy())
        np.testing.assert_array_equal(rollout.observations[10], observation)
        assert collector.steps == sum(row.sum() for row in valid)


def test_an_environment_that_is_forced_to_reset_starts_an_episode() -> None:
    envs_ = vectorize.sequential("CartPole-v1", B)
    envs_.reset(seed=0)
    assert vectorize.force_reset(envs_, 1)
    before = np.array(envs_._observations)
    observations, rewards, *_ = envs_.step(np.ones(B, np.int64))
    assert rewards.tolist() == [1, 0, 1]
    assert (np.abs(observations[1]) <= 0.05).all()
    assert (observations[1] != before[1]).all()


def test_a_reset_after_an_end_starts_an_episode_at_once() -> None:
    clocks = vectorize.sequential(envs.terminated_clock, 1)
    clocks.reset()
    for _ in range(envs.Clock.length):
        *_, terminated, _, _ = clocks.step(np.zeros(1, np.int64))
    assert terminated.all()
    clocks.reset()
    assert clocks.step(np.zeros(1, np.int64))[1].tolist() == [1]


class LosesLives(envs.Clock):
    """Clock that loses a life in steps 3 and 5."""

    def step(self, action: Any) -> envs.Step:
        *outcome, _ = super().step(action)
        return *outcome, {"lives": 3 - (self._step >= 3) - (self._step >= 5)}  # type: ignore[return-value]


@pytest.mark.parametrize("n_steps", [1, 4, 10])
def test_lost_lives_terminate_across_the_ends_of_rollouts(n_steps: int) -> None:
    clocks = vectorize.sequential(functools.partial(LosesLives, False), 1)
    codec = EnvCodec(
        ObservationCodec.of(clocks.single_observation_space),
        ActionCodec.of(clocks.single_action_space),
        terminal_on_life_loss=True,
    )
    collector = Collector([clocks], codec, n_steps, 0, lambda *_: None, arrays=True)
    terminated: list[bool] = []
    while len(terminated) < 20:
        rollout = collector.collect(lambda rows, state: (np.zeros(1, np.int64), state))
        terminated += rollout.terminated[:, 0].tolist()
    assert [t for t in range(10) if terminated[t]] == [2, 4]


class ShortClock(envs.Clock):
    """Clock that terminates in a given step."""

    def __init__(self, last: int) -> None:
        super().__init__(terminates=True)
        self._last = last

    def step(self, action: Any) -> envs.Step:
        observation, reward, *_, info = super().step(action)
        return observation, reward, self._step == self._last, False, info


def test_episodes_are_in_the_order_of_their_ends() -> None:
    clocks = vectorize.SequentialVectorEnv(map(ShortClock, [7, 5, 6]).__next__, B)
    codec = EnvCodec(
        ObservationCodec.of(clocks.single_observation_space),
        ActionCodec.of(clocks.single_action_space),
    )
    collector = Collector([clocks], codec, 12, 0, lambda *_: None, arrays=True)
    collector.collect(lambda rows, state: (np.zeros(B, np.int64), state))
    assert collector.episodes == [(5, 5), (6, 6), (7, 7), (5, 5)]


def test_environments_are_closed() -> None:
    closed: list[int] = []

    class Closing(envs.Clock):
        def close(self) -> None:
            closed.append(1)

    make_env: Callable[[], Any] = functools.partial(Closing, True)
    vectorize.SequentialVectorEnv(make_env, B).close()
    assert len(closed) == B
