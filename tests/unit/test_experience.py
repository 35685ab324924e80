"""Experience in a replay against plain loops over single environments."""

import dataclasses
import functools
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
from tests import envs

SEED = 11


class Walk(gymnasium.Env[Any, Any]):
    """Walks along a line from a random place; ends beyond 3, and is cut after seven steps.

    A step may do both. Pays the place; in `words` it is printed as a Dict.
    """

    def __init__(self, words: bool = False) -> None:
        numbers = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self._words = words
        self.observation_space = spaces.Dict(place=numbers, odd=spaces.Discrete(2))
        if not words:
            self.observation_space = numbers
        self.action_space = spaces.Box(-1, 2, (1,))

    def _observe(self) -> Any:
        place = np.array([self._place, self._step])
        return {"place": place, "odd": self._step % 2} if self._words else place

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._place, self._step = float(self.np_random.random()), 0
        return self._observe(), {}

    def step(self, action: Any) -> envs.Step:
        self._place += float(action[0])
        self._step += 1
        return self._observe(), self._place, self._place > 3, self._step == 7, {}


class Pictures(envs.Pictures):
    """A chain in pictures that goes left where an action is below -0.5; it paints one array."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Box(-1, 1, (1,))
        self._canvas = np.zeros((20, 20, 3), np.uint8)

    def _observe(self) -> Any:
        self._canvas[:] = super()._observe()
        return self._canvas

    def step(self, action: Any) -> envs.Step:
        return super().step(int(action[0] > -0.5))


def clock(terminates: bool) -> gymnasium.Env[Any, Any]:
    """One whose actions are numbers."""
    env = envs.Clock(terminates)
    env.action_space = spaces.Box(-1, 1, (1,))
    return env


ENVIRONMENTS: dict[str, tuple[make.EnvSource, int]] = {
    "walk": (Walk, 60),
    "in words": (functools.partial(Walk, words=True), 60),
    "pictures": (Pictures, 40),
    "pendulum": ("Pendulum-v1", 450),
}
every_environment = pytest.mark.parametrize(
    ("env", "steps"), ENVIRONMENTS.values(), ids=ENVIRONMENTS.keys()
)


@dataclasses.dataclass
class Lived:
    """What was to be seen after each step, and before the first one."""

    replay: ReplayBuffer
    observations: list[Tensor]
    actions: list[Tensor] = dataclasses.field(default_factory=list)
    ended: list[list[bool]] = dataclasses.field(default_factory=list)
    episodes: list[list[tuple[float, int]]] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)


def interface_of(envs: VectorEnv[Any, Any, Any]) -> EnvCodec:
    """Actions in −1..1, as a deterministic policy gives them."""
    return EnvCodec(
        ObservationCodec.of(envs.single_observation_space),
        ActionCodec.of(envs.single_action_space, rescale=True),
    )


def live(env: make.EnvSource, B: int, steps: int, laps: list[str] | None = None) -> Lived:
    """Random actions, some of them at their bounds."""
    envs = vectorize.sync_vector_env(env, B)
    env_codec = interface_of(envs)
    replay = ReplayBuffer(B * steps, B, env_codec)
    lap = (lambda phase: None) if laps is None else laps.append
    experience = TransitionCollector(envs, env_codec, replay, SEED, lap)
    lived, generator = Lived(replay, [experience.observations]), torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        lived.actions.append(torch.randn(B, 1, generator=generator).clamp_(-1, 1))
        experience.step(lived.actions[-1])
        lived.observations.append(experience.observations)
        lived.ended.append(experience.ended.tolist())
        lived.episodes.append(list(experience.episodes))
        lived.steps.append(experience.steps)
    envs.close()
    return lived


def kept(replay: ReplayBuffer) -> set[tuple[float, ...]]:
    """All transitions as tuples of numbers: s, a, r, s', terminated."""
    batch = replay.sample(30 * len(replay), torch.Generator().manual_seed(0))
    columns = [tensor.reshape(len(tensor), -1).float() for tensor in vars(batch).values()]
    different = {row.tobytes(): row for row in torch.cat(columns, dim=1).numpy()}
    return {tuple(row.tolist()) for row in different.values()}


@every_environment
def test_what_is_kept_is_what_single_environments_do(env: make.EnvSource, steps: int) -> None:
    """Played alone from the same seed with the same actions: rows, ends, returns and lengths."""
    B = 3
    lived = live(env, B, steps)
    expected: set[tuple[float, ...]] = set()
    ended, valid = np.zeros((2, steps, B), dtype=bool)
    printed: list[list[tuple[float, int]]] = [[] for _ in range(steps)]
    for b in range(B):
        single = make.make_env(env)
        seen = ObservationCodec.of(single.observation_space)
        decode = ActionCodec.of(single.action_space, rescale=True).to_env
        row = seen.row(single.reset(seed=SEED + b)[0]).astype(seen.dtype)
        total, length = 0.0, 0
        for t in range(steps):
            assert (lived.observations[t][b].numpy() == row).all()
            if t > 0 and ended[t - 1, b]:
                row = seen.row(single.reset()[0]).astype(seen.dtype)
                continue
            action = lived.actions[t][b].numpy()
            observation, paid, terminated, truncated, _ = single.step(decode(action[None])[0])
            before, row = row, seen.row(observation).astype(seen.dtype)
            end = (np.float32(paid), *row.flat, terminated)
            expected.add(tuple(float(x) for x in (*before.flat, *action, *end)))
            total, length, valid[t, b] = total + float(paid), length + 1, True
            if terminated or truncated:
                printed[t].append((total, length))
                ended[t, b], total, length = True, 0.0, 0
        assert (lived.observations[steps][b].numpy() == row).all()
    assert kept(lived.replay) == expected
    assert len(lived.replay) == valid.sum() == sum(lived.steps)
    assert lived.steps == valid.sum(1).tolist()
    assert lived.ended == ended.tolist()
    for ours, theirs in zip(lived.episodes, printed, strict=True):
        assert [length for _, length in ours] == [length for _, length in theirs]
        assert [r for r, _ in ours] == pytest.approx([r for r, _ in theirs], abs=1e-9)
    assert sum(map(len, printed)) >= 2 * B


def test_both_ways_to_end_are_met() -> None:
    """The walk terminates, is cut, and does both at once: only a cut leaves a future behind it."""
    lived = live(Walk, 4, 200)
    ends = {
        (place > 3, step == 7, terminated)
        for *_, place, step, terminated in kept(lived.replay)
        if place > 3 or step == 7
    }
    assert ends == {(True, False, True), (False, True, False), (True, True, True)}


@pytest.mark.parametrize("terminates", [False, True])
def test_a_time_limit_is_told_from_an_end(terminates: bool) -> None:
    """Ten steps, the eleventh only resets: it is not kept, counted or paid."""
    B, steps = 2, 44
    lived = live(functools.partial(clock, terminates), B, steps)
    last, reset = np.arange(steps) % 11 == 9, np.arange(steps) % 11 == 10
    assert lived.ended == [[end] * B for end in last]
    assert lived.steps == [0 if resets else B for resets in reset]
    assert lived.episodes == [[(10.0, 10)] * B if end else [] for end in last]
    assert len(lived.replay) == 4 * 10 * B
    ends = {(shows_the_tenth, end) for *_, shows_the_tenth, end in kept(lived.replay)}
    assert ends == ({(False, False), (True, True)} if terminates else {(False, False)})


@every_environment
def test_observations_are_not_overwritten(env: make.EnvSource, steps: int) -> None:
    """What was shown stays as it was, in an array of its own, in the policy's type."""
    envs = vectorize.sync_vector_env(env, 2)
    env_codec = interface_of(envs)
    experience = TransitionCollector(
        envs, env_codec, ReplayBuffer(9, 2, env_codec), SEED, lambda phase: None
    )
    shown = []
    for _ in range(12):
        shown.append((experience.observations, experience.observations.clone()))
        experience.step(torch.full((2, 1), 0.4))
    assert all(torch.equal(now, before) for now, before in shown)
    assert len({now.data_ptr() for now, _ in shown}) == 12
    assert {now.shape for now, _ in shown} == {(2, *env_codec.observations.shape)}
    pictures = env is Pictures
    assert {now.dtype for now, _ in shown} == {torch.uint8 if pictures else torch.float32}


def test_actions_are_kept_as_the_policy_gave_them() -> None:
    """In −1..1, though the walk takes −1..2: half of the way up is 1.25."""
    envs = vectorize.sync_vector_env(Walk, 1)
    env_codec = interface_of(envs)
    replay = ReplayBuffer(5, 1, env_codec)
    experience = TransitionCollector(envs, env_codec, replay, SEED, lambda phase: None)
    start = float(experience.observations[0, 0])
    experience.step(torch.tensor([[0.5]]))
    (transition,) = kept(replay)
    assert transition == pytest.approx((start, 0, 0.5, start + 1.25, start + 1.25, 1, 0))


def test_phases_are_told_as_they_end() -> None:
    laps: list[str] = []
    live(Walk, 2, 5, laps)
    assert laps == ["act", "env"] * 5
