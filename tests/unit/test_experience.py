"""Tests of TransitionCollector and ReplayBuffer against loops over single environments."""

import dataclasses
import functools
import time
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.collect.replay import ReplayBuffer
from hogwild_rl.collect.transitions import TransitionCollector
from hogwild_rl.envs import make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.hogwild.counters import Counters
from tests import envs

SEED = 11


class Walk(gymnasium.Env[Any, Any]):
    """Random initial position; terminates beyond 3 and is truncated at step seven, or both.

    The reward is the position. Observations are a vector or, with `nested`, a Dict.
    """

    def __init__(self, nested: bool = False) -> None:
        vector = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self._nested = nested
        self.observation_space = spaces.Dict(position=vector, odd=spaces.Discrete(2))
        if not nested:
            self.observation_space = vector
        self.action_space = spaces.Box(-1, 2, (1,))

    def _observe(self) -> Any:
        vector = np.array([self._position, self._step])
        return {"position": vector, "odd": self._step % 2} if self._nested else vector

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._position, self._step = float(self.np_random.random()), 0
        return self._observe(), {}

    def step(self, action: Any) -> envs.Step:
        self._position += float(action[0])
        self._step += 1
        return self._observe(), self._position, self._position > 3, self._step == 7, {}


class Images(envs.Images):
    """Image chain that moves left for actions up to -0.5, and reuses one observation array."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (1,))
        self._image = np.zeros((20, 20, 3), np.uint8)

    def _observe(self) -> Any:
        self._image[:] = super()._observe()
        return self._image

    def step(self, action: Any) -> envs.Step:
        return super().step(int(action[0] > -0.5))


def clock(terminates: bool) -> gymnasium.Env[Any, Any]:
    """Clock with continuous actions."""
    env = envs.Clock(terminates)
    env.action_space = spaces.Box(-1, 1, (1,))
    return env


ENVIRONMENTS: dict[str, tuple[make.EnvSource, int]] = {
    "walk": (Walk, 60),
    "dict": (functools.partial(Walk, nested=True), 60),
    "images": (Images, 40),
    "pendulum": ("Pendulum-v1", 450),
}
every_environment = pytest.mark.parametrize(
    ("env", "steps"), ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys()
)


@dataclasses.dataclass
class Collected:
    """State of the collector before the first step and after each step."""

    replay: ReplayBuffer
    observations: list[Tensor]
    actions: list[Tensor] = dataclasses.field(default_factory=list)
    ended: list[list[bool]] = dataclasses.field(default_factory=list)
    episodes: list[list[tuple[float, int]]] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)


def env_codec_of(envs: VectorEnv[Any, Any, Any]) -> EnvCodec:
    """Codec for actions in [−1, 1], as of a deterministic policy."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space, rescale=True),
    )


def collect(env: make.EnvSource, B: int, steps: int) -> Collected:
    """Results of random actions, some of them at the bounds."""
    envs = vectorize.sequential(env, B)
    env_codec = env_codec_of(envs)
    replay = ReplayBuffer(B * steps, B, env_codec)
    collector = TransitionCollector(envs, env_codec, replay, SEED, lambda *_: None)
    collected = Collected(replay, [collector.observations])
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        collected.actions.append(torch.randn(B, 1, generator=generator).clamp_(-1, 1))
        collector.step(collected.actions[-1])
        collected.observations.append(collector.observations)
        collected.ended.append(collector.ended.tolist())
        collected.episodes.append(list(collector.episodes))
        collected.steps.append(collector.steps)
    envs.close()
    return collected


def transitions(replay: ReplayBuffer) -> set[tuple[float, ...]]:
    """All stored transitions as tuples s, a, r, s', terminated."""
    batch = replay.sample(30 * len(replay), torch.Generator().manual_seed(0))
    columns = [tensor.reshape(len(tensor), -1).float() for tensor in vars(batch).values()]
    different = {row.tobytes(): row for row in torch.cat(columns, dim=1).numpy()}
    return {tuple(row.tolist()) for row in different.values()}


@every_environment
def test_transitions_equal_those_of_single_environments(env: make.EnvSource, steps: int) -> None:
    """Compares rows, ends, returns and lengths for the same seed and actions."""
    B = 3
    collected = collect(env, B, steps)
    expected: set[tuple[float, ...]] = set()
    ended, valid = np.zeros((2, steps, B), dtype=bool)
    episodes: list[list[tuple[float, int]]] = [[] for _ in range(steps)]
    for b in range(B):
        single = make.make_env(env)
        codec = ObservationCodec.of(single.observation_space)
        decode = ActionCodec.of(single.action_space, rescale=True).to_env
        row = codec.row(single.reset(seed=SEED + b)[0]).astype(codec.dtype)
        total, length = 0.0, 0
        for t in range(steps):
            assert (collected.observations[t][b].numpy() == row).all()
            if t > 0 and ended[t - 1, b]:
                row = codec.row(single.reset()[0]).astype(codec.dtype)
                continue
            action = collected.actions[t][b].numpy()
            observation, reward, terminated, truncated, _ = single.step(decode(action[None])[0])
            before, row = row, codec.row(observation).astype(codec.dtype)
            end = (np.float32(reward), *row.flat, terminated)
            expected.add(tuple(float(x) for x in (*before.flat, *action, *end)))
            total, length, valid[t, b] = total + float(reward), length + 1, True
            if terminated or truncated:
                episodes[t].append((total, length))
                ended[t, b], total, length = True, 0.0, 0
        assert (collected.observations[steps][b].numpy() == row).all()
    assert transitions(collected.replay) == expected
    assert len(collected.replay) == valid.sum() == sum(collected.steps)
    assert collected.steps == valid.sum(1).tolist()
    assert collected.ended == ended.tolist()
    for ours, theirs in zip(collected.episodes, episodes, strict=True):
        assert [length for _, length in ours] == [length for _, length in theirs]
        assert [r for r, _ in ours] == pytest.approx([r for r, _ in theirs], abs=1e-9)
    assert sum(map(len, episodes)) >= 2 * B


def test_truncated_steps_are_not_stored_as_terminal() -> None:
    """Only steps that are truncated and not terminated bootstrap."""
    collected = collect(Walk, 4, 200)
    ends = {
        (position > 3, step == 7, terminated)
        for *_, position, step, terminated in transitions(collected.replay)
        if position > 3 or step == 7
    }
    assert ends == {(True, False, True), (False, True, False), (True, True, True)}


@pytest.mark.parametrize("terminates", [False, True])
def test_time_limit_is_not_a_terminal_state(terminates: bool) -> None:
    """The eleventh step only resets: it is not stored or counted and has no reward."""
    B, steps = 2, 44
    collected = collect(functools.partial(clock, terminates), B, steps)
    last, reset = np.arange(steps) % 11 == 9, np.arange(steps) % 11 == 10
    assert collected.ended == [[end] * B for end in last]
    assert collected.steps == [0 if resets else B for resets in reset]
    assert collected.episodes == [[(10.0, 10)] * B if end else [] for end in last]
    assert len(collected.replay) == 4 * 10 * B
    ends = {(step_10, end) for *_, step_10, end in transitions(collected.replay)}
    assert ends == ({(False, False), (True, True)} if terminates else {(False, False)})


@every_environment
def test_observations_do_not_share_memory(env: make.EnvSource, steps: int) -> None:
    """Every step returns a new tensor of the codec's dtype."""
    envs = vectorize.sequential(env, 2)
    env_codec = env_codec_of(envs)
    collector = TransitionCollector(
        envs, env_codec, ReplayBuffer(9, 2, env_codec), SEED, lambda *_: None
    )
    observations = []
    for _ in range(12):
        observations.append((collector.observations, collector.observations.clone()))
        collector.step(torch.full((2, 1), 0.4))
    assert all(torch.equal(now, before) for now, before in observations)
    assert len({now.data_ptr() for now, _ in observations}) == 12
    assert {now.shape for now, _ in observations} == {(2, *env_codec.observations.shape)}
    images = env is Images
    assert {now.dtype for now, _ in observations} == {torch.uint8 if images else torch.float32}


def test_actions_are_stored_as_the_policy_gave_them() -> None:
    """The policy's range is [−1, 1], the environment's [−1, 2]: 0.5 becomes 1.25."""
    envs = vectorize.sequential(Walk, 1)
    env_codec = env_codec_of(envs)
    replay = ReplayBuffer(5, 1, env_codec)
    collector = TransitionCollector(envs, env_codec, replay, SEED, lambda *_: None)
    start = float(collector.observations[0, 0])
    collector.step(torch.tensor([[0.5]]))
    (transition,) = transitions(replay)
    assert transition == pytest.approx((start, 0, 0.5, start + 1.25, start + 1.25, 1, 0))


class SlowWalk(Walk):
    """Walk whose step takes at least 4 ms."""

    def step(self, action: Any) -> Any:
        time.sleep(0.004)
        return super().step(action)


def test_stepping_and_acting_before_it_are_timed_separately() -> None:
    envs = vectorize.sequential(SlowWalk, 2)
    env_codec, counters = env_codec_of(envs), Counters(1)
    replay = ReplayBuffer(20, 2, env_codec)
    collector = TransitionCollector(envs, env_codec, replay, SEED, counters.writer(0).lap)
    before, start_s = counters.seconds(), time.monotonic()
    for _ in range(5):
        time.sleep(0.002)
        collector.step(torch.zeros(2, 1))
    elapsed_s = time.monotonic() - start_s
    seconds = {name: after - before[name] for name, after in counters.seconds().items()}
    assert seconds["env"] >= 10 * 0.004
    assert 5 * 0.002 <= seconds["act"] <= elapsed_s - 10 * 0.004
