"""What a replay holds against a plain list of all that was ever added."""

import io
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from hogwild_rl.collect.replay import ReplayBuffer, Transitions, size_in_bytes
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec

VECTOR = spaces.Box(-np.inf, np.inf, (2,), np.float32)
PICTURE = spaces.Box(0, 255, (5, 4, 3), np.uint8)
Transition: TypeAlias = tuple[float, ...]  # s, a, r, s', terminated
every_size = pytest.mark.parametrize(("capacity", "B"), [(1, 1), (7, 1), (1, 3), (12, 3), (13, 3)])


def env_codec(seen: spaces.Box = VECTOR, actions: int = 2) -> EnvCodec:
    """Between environments that show this and take so many numbers."""
    chosen = spaces.Box(-1, 1, (actions,))
    return EnvCodec(ObservationCodec.of(seen), ActionCodec.of(chosen))


def stream(seed: int = 0) -> torch.Generator:
    """A random stream of its own."""
    return torch.Generator().manual_seed(seed)


class World:
    """B environments that fill a replay, and a list of every row of transitions that they gave.

    No number is shown, done or paid twice. Episodes are short, and every kind of end is met.

    Args:
        replay: to be filled.
        B: environments.
        ends: how probable an episode's end is in each step.
        count: the first number.
    """

    def __init__(self, replay: ReplayBuffer, B: int, ends: float = 0.3, count: int = 0) -> None:
        self._replay, self._B, self._ends = replay, B, ends
        self._random, self.count = np.random.default_rng(count), count
        self._resetting = np.zeros(B, dtype=bool)
        self._seen = self._new()
        self.rows: list[list[Transition]] = []
        replay.begin(self._seen)

    def _new(self) -> Any:
        """Numbers that nobody has seen before, [B, 2]."""
        first, self.count = self.count, self.count + 2 * self._B
        return np.arange(first, self.count).reshape(self._B, 2).astype(np.float32)

    def step(self) -> None:
        """One on, in the replay and in the list."""
        actions, following = torch.from_numpy(self._new()), self._new()
        valid = ~self._resetting
        rewards = np.where(valid, self._new()[:, 0].astype(np.float64), 0.0)
        ended = valid & (self._random.random(self._B) < self._ends)
        terminated = ended & (self._random.random(self._B) < 0.5)
        self._replay.add(actions, rewards, following, terminated, valid)
        columns = (self._seen, actions.tolist(), rewards[:, None], following, terminated[:, None])
        rows = np.concatenate(columns, axis=1).tolist()
        self.rows.append([tuple(row) for row, real in zip(rows, valid, strict=True) if real])
        self._seen, self._resetting = following, ended


def transitions(batch: Transitions) -> list[Transition]:
    """One tuple of numbers for each."""
    columns = [tensor.reshape(len(tensor), -1).double() for tensor in vars(batch).values()]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]


def drawable(replay: ReplayBuffer) -> list[Transition]:
    """What is found in so many draws that nothing is missed."""
    if not len(replay):
        return []
    return sorted(set(transitions(replay.sample(60 * len(replay), stream()))))


def newest(rows: list[list[Transition]], capacity: int, B: int) -> list[Transition]:
    """Those of the rows that a replay has room for."""
    return sorted(transition for row in rows[-math.ceil(capacity / B) :] for transition in row)


@every_size
@pytest.mark.parametrize("ends", [0.0, 0.3, 1.0], ids=["never", "some", "always"])
def test_what_can_be_drawn_is_the_newest_valid_transitions(
    capacity: int, B: int, ends: float
) -> None:
    """After every step, several times around the ring, with their right next observations."""
    replay = ReplayBuffer(capacity, B, env_codec())
    world = World(replay, B, ends)
    assert len(replay) == 0
    for _ in range(6 * (capacity // B + 2)):
        world.step()
        expected = newest(world.rows, capacity, B)
        assert drawable(replay) == expected
        assert len(replay) == len(expected)
    assert len({len(row) for row in world.rows}) > (ends > 0)


@every_size
def test_the_capacity_is_kept_where_nothing_resets(capacity: int, B: int) -> None:
    """As many at least, and not a row more than that takes."""
    replay = ReplayBuffer(capacity, B, env_codec())
    world = World(replay, B, ends=0.0)
    for step in range(1, 4 * capacity + 4):
        world.step()
        assert len(replay) == min(step * B, math.ceil(capacity / B) * B)
    assert capacity <= len(replay) < capacity + B


def test_an_episode_s_last_observation_is_what_follows_its_last_transition() -> None:
    """Not the one that the next episode begins with, and not the other environment's."""
    replay, nothing, both = (
        ReplayBuffer(20, 2, env_codec()),
        torch.zeros(2, 2),
        np.ones(2, dtype=bool),
    )
    ended, valid = np.array([True, False]), np.array([False, True])
    replay.begin(np.array([[0, 0], [10, 0]]))
    replay.add(nothing, both, np.array([[1, 0], [11, 0]]), ended, both)
    replay.add(nothing, both, np.array([[0, 5], [12, 0]]), ~both, valid)
    replay.add(nothing, both, np.array([[1, 5], [13, 0]]), ~both, both)
    found = {(*s[:2], *s[5:]) for s in transitions(replay.sample(400, stream()))}
    assert found == {
        (0, 0, 1, 0, True),
        (0, 5, 1, 5, False),
        (10, 0, 11, 0, False),
        (11, 0, 12, 0, False),
        (12, 0, 13, 0, False),
    }


def test_all_are_drawn_equally_often_and_apart() -> None:
    """χ² of 40 draws each lies where chance puts it: neither uneven nor dealt out in turn."""
    replay = ReplayBuffer(60, 3, env_codec())
    world = World(replay, 3)
    for _ in range(37):  # the ring begins in its middle
        world.step()
    kept = newest(world.rows, 60, 3)
    drawn = transitions(replay.sample(40 * len(kept), stream()))
    index = {transition: i for i, transition in enumerate(kept)}
    found = np.array([index[transition] for transition in drawn])
    counts = np.bincount(found, minlength=len(kept))
    freedom = len(kept) - 1
    assert 35 < freedom < 60
    assert abs(((counts - 40) ** 2 / 40).sum() - freedom) < 4 * np.sqrt(2 * freedom)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / np.sqrt(len(found))


def test_draws_are_those_of_the_stream() -> None:
    """A seed gives the same ones again, and the next draw gives others."""
    replay = ReplayBuffer(50, 1, env_codec())
    world = World(replay, 1)
    for _ in range(50):
        world.step()
    once, again = stream(3), stream(3)
    first, second = (transitions(replay.sample(9, once)) for _ in range(2))
    assert [transitions(replay.sample(9, again)) for _ in range(2)] == [first, second]
    assert first != second


def test_a_batch_is_not_overwritten() -> None:
    """It has memory of its own, also when the ring has come around."""
    replay = ReplayBuffer(6, 3, env_codec())
    world = World(replay, 3, ends=0.0)
    world.step()
    batch = replay.sample(20, stream())
    before = transitions(batch)
    for _ in range(9):
        world.step()
    assert transitions(batch) == before


@pytest.mark.parametrize("space", [VECTOR, PICTURE], ids=["vector", "picture"])
def test_a_batch_in_one_piece_is_filled_and_copied_as_bytes(space: spaces.Box) -> None:
    """Views of the same layout anywhere: one copy of the bytes is a copy of the batch."""
    replay = ReplayBuffer(20, 2, env_codec(space))
    random = np.random.default_rng(0)

    def shown() -> np.ndarray:
        return random.integers(0, 256, (2, *space.shape)).astype(space.dtype)

    replay.begin(shown())
    for _ in range(9):
        ended = random.random(2) < 0.5
        replay.add(random.random((2, 2)), random.random(2), shown(), ended, np.ones(2, bool))
    flat, batch = replay.empty(7)
    assert replay.sample(7, stream(), batch) is batch
    for name, tensor in vars(replay.sample(7, stream())).items():
        assert torch.equal(getattr(batch, name), tensor), name
    there, copied = replay.empty(7, torch.device("cpu"))
    there.copy_(flat)
    for name, tensor in vars(batch).items():
        assert torch.equal(getattr(copied, name), tensor), name
        assert getattr(copied, name).dtype == tensor.dtype
    assert replay.empty(7, torch.device("meta"))[1].rewards.device.type == "meta"


def test_pictures_stay_the_bytes_they_were() -> None:
    """Each environment's own, and no copy of them is kept in another type."""
    replay, pictures = (
        ReplayBuffer(8, 2, env_codec(PICTURE)),
        np.zeros((2, 2, *PICTURE.shape), np.uint8),
    )
    pictures[:] = np.random.default_rng(0).integers(0, 256, pictures.shape)
    replay.begin(pictures[0])
    replay.add(torch.zeros(2, 2), np.zeros(2), pictures[1], np.zeros(2, bool), np.ones(2, bool))
    batch = replay.sample(30, stream())
    assert batch.observations.dtype == batch.next_observations.dtype == torch.uint8
    environment = (batch.observations.numpy() == pictures[0, 1]).all((1, 2, 3)).astype(int)
    assert set(environment) == {0, 1}
    assert (batch.observations.numpy() == pictures[0, environment]).all()
    assert (batch.next_observations.numpy() == pictures[1, environment]).all()
    large = [t for t in replay.state().values() if isinstance(t, Tensor) and t.numel() > 100]
    assert [(tuple(t.shape), t.dtype) for t in large] == [((5, 2, *PICTURE.shape), torch.uint8)]


# Files.


def written(replay: ReplayBuffer) -> dict[str, Any]:
    """Its state, from a file."""
    file = io.BytesIO()
    torch.save(replay.state(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@every_size
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 23])
def test_a_restored_replay_goes_on(capacity: int, B: int, steps: int) -> None:
    """All it held is there, but for one row's room, which the step that was open takes."""
    replay, rows, count = ReplayBuffer(capacity, B, env_codec()), [], 0
    for life in range(3):
        world = World(replay, B, count=count)
        for _ in range(steps * (life < 2)):  # the last life ends before its first step
            world.step()
        rows += [*world.rows, []]
        count = world.count
        state, replay = written(replay), ReplayBuffer(capacity, B, env_codec())
        assert replay.restore(state)
        assert drawable(replay) == newest(rows, capacity, B)
    world = World(replay, B, count=count)
    for _ in range(3 * (capacity // B + 2)):
        world.step()
        expected = newest(rows + world.rows, capacity, B)
        assert drawable(replay) == expected
        assert len(replay) == len(expected)


OTHERS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "larger": lambda state: ReplayBuffer(13, 3, env_codec()).state(),
    "fewer environments": lambda state: ReplayBuffer(8, 2, env_codec()).state(),
    "pictures": lambda state: ReplayBuffer(12, 3, env_codec(PICTURE)).state(),
    "other actions": lambda state: ReplayBuffer(12, 3, env_codec(actions=3)).state(),
    "other bytes": lambda state: {**state, "_observations": state["_observations"].int()},
    "other kinds": lambda state: {**state, "_row": str(state["_row"])},
    "a part": lambda state: dict(list(state.items())[:-1]),
    "nothing": lambda state: {},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_what_does_not_fit_is_refused_and_changes_nothing(
    other: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    replay = ReplayBuffer(12, 3, env_codec())
    world = World(replay, 3)
    for _ in range(6):
        world.step()
    before, expected = written(replay), newest(world.rows, 12, 3)
    assert not replay.restore(other(written(replay)))
    for key, value in replay.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[key]))
    assert drawable(replay) == expected
    world.step()
    assert drawable(replay) == newest(world.rows, 12, 3)
    assert replay.restore(before)  # what does fit


# Memory.


@pytest.mark.parametrize("space", [VECTOR, PICTURE], ids=["numbers", "bytes"])
@pytest.mark.parametrize(("capacity", "B"), [(1_000, 1), (1_000, 16), (1_001, 16)])
def test_its_size_is_that_of_its_tensors(space: spaces.Box, capacity: int, B: int) -> None:
    """To the byte for each transition; a count for each row, 8 bytes, may come on top."""
    wanted = size_in_bytes(capacity, B, env_codec(space, actions=5))
    state = ReplayBuffer(capacity, B, env_codec(space, actions=5)).state()
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    taken = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert 0 <= taken - wanted <= 8 * (math.ceil(capacity / B) + 1)
    assert len(tensors) == 6
