"""Tests of the replay buffer against a list of all added transitions."""

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
IMAGE = spaces.Box(0, 255, (16, 17, 3), np.uint8)
Transition: TypeAlias = tuple[float, ...]  # s, a, r, s', terminated
every_size = pytest.mark.parametrize(("capacity", "B"), [(1, 1), (7, 1), (1, 3), (12, 3), (13, 3)])


def env_codec(observation: spaces.Box = VECTOR, actions: int = 2) -> EnvCodec:
    """Returns the codec of an environment with this observation space and action size."""
    action = spaces.Box(-1, 1, (actions,))
    return EnvCodec(ObservationCodec.of(observation), ActionCodec.of(action))


def generator(seed: int = 0) -> torch.Generator:
    """Returns a seeded generator."""
    return torch.Generator().manual_seed(seed)


class Envs:
    """B environments that fill a replay buffer, and a list of all rows of their transitions.

    All observations, actions and rewards are different. Episodes are terminated or truncated.

    Args:
        replay: the replay buffer.
        B: number of environments.
        ends: probability that an episode ends in a step.
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
        """Returns numbers that were not used before, [B, 2]."""
        first, self.count = self.count, self.count + 2 * self._B
        return np.arange(first, self.count).reshape(self._B, 2).astype(np.float32)

    def step(self) -> None:
        """Adds one step to the replay buffer and to the list."""
        actions, following = torch.from_numpy(self._new()), self._new()
        valid = ~self._resetting
        rewards = np.where(valid, self._new()[:, 0].astype(np.float64), 0.0)
        ended = valid & (self._random.random(self._B) < self._ends)
        terminated = ended & (self._random.random(self._B) < 0.5)
        self._replay.add(actions, rewards, following, terminated, valid)
        columns = (self._seen, actions.tolist(), rewards[:, None], following, terminated[:, None])
        rows = np.concatenate(columns, axis=1).tolist()
        self.rows.append([tuple(row) for row, ok in zip(rows, valid, strict=True) if ok])
        self._seen, self._resetting = following, ended


def transitions(batch: Transitions) -> list[Transition]:
    """Returns one tuple per transition."""
    columns = [tensor.reshape(len(tensor), -1).double() for tensor in vars(batch).values()]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]


def sampleable(replay: ReplayBuffer) -> list[Transition]:
    """Returns the distinct transitions among so many samples that none is missing."""
    if not len(replay):
        return []
    return sorted(set(transitions(replay.sample(60 * len(replay), generator()))))


def newest(rows: list[list[Transition]], capacity: int, B: int) -> list[Transition]:
    """Returns the transitions of the newest rows, as many as the replay buffer has rows."""
    return sorted(transition for row in rows[-math.ceil(capacity / B) :] for transition in row)


@every_size
@pytest.mark.parametrize("ends", [0.0, 0.3, 1.0], ids=["never", "some", "always"])
def test_samples_are_the_newest_valid_transitions(capacity: int, B: int, ends: float) -> None:
    """Compared after every step, until the ring buffer has wrapped around several times."""
    replay = ReplayBuffer(capacity, B, env_codec())
    envs = Envs(replay, B, ends)
    assert len(replay) == 0
    for _ in range(6 * (capacity // B + 2)):
        envs.step()
        expected = newest(envs.rows, capacity, B)
        assert sampleable(replay) == expected
        assert len(replay) == len(expected)
    assert len({len(row) for row in envs.rows}) > (ends > 0)


@every_size
def test_the_length_reaches_the_capacity_rounded_up_to_rows(capacity: int, B: int) -> None:
    """No step is invalid, as no episode ends."""
    replay = ReplayBuffer(capacity, B, env_codec())
    envs = Envs(replay, B, ends=0.0)
    for step in range(1, 4 * capacity + 4):
        envs.step()
        assert len(replay) == min(step * B, math.ceil(capacity / B) * B)
    assert capacity <= len(replay) < capacity + B


def test_the_last_transition_of_an_episode_has_its_final_observation() -> None:
    """Not the next episode's first observation, nor that of another environment."""
    replay, zeros, both = (
        ReplayBuffer(20, 2, env_codec()),
        torch.zeros(2, 2),
        np.ones(2, dtype=bool),
    )
    ended, valid = np.array([True, False]), np.array([False, True])
    replay.begin(np.array([[0, 0], [10, 0]]))
    replay.add(zeros, both, np.array([[1, 0], [11, 0]]), ended, both)
    replay.add(zeros, both, np.array([[0, 5], [12, 0]]), ~both, valid)
    replay.add(zeros, both, np.array([[1, 5], [13, 0]]), ~both, both)
    found = {(*s[:2], *s[5:]) for s in transitions(replay.sample(400, generator()))}
    assert found == {
        (0, 0, 1, 0, True),
        (0, 5, 1, 5, False),
        (10, 0, 11, 0, False),
        (11, 0, 12, 0, False),
        (12, 0, 13, 0, False),
    }


def test_samples_are_uniform_and_independent() -> None:
    """χ² of 40 samples per transition is within 4 standard deviations of its mean."""
    replay = ReplayBuffer(60, 3, env_codec())
    envs = Envs(replay, 3)
    for _ in range(37):  # the oldest row is in the middle of the ring buffer
        envs.step()
    kept = newest(envs.rows, 60, 3)
    sampled = transitions(replay.sample(40 * len(kept), generator()))
    index = {transition: i for i, transition in enumerate(kept)}
    found = np.array([index[transition] for transition in sampled])
    counts = np.bincount(found, minlength=len(kept))
    freedom = len(kept) - 1
    assert 35 < freedom < 60
    assert abs(((counts - 40) ** 2 / 40).sum() - freedom) < 4 * np.sqrt(2 * freedom)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / np.sqrt(len(found))


def test_samples_depend_on_the_generator() -> None:
    """Equal seeds give equal batches, and consecutive batches differ."""
    replay = ReplayBuffer(50, 1, env_codec())
    envs = Envs(replay, 1)
    for _ in range(50):
        envs.step()
    one, other = generator(3), generator(3)
    first, second = (transitions(replay.sample(9, one)) for _ in range(2))
    assert [transitions(replay.sample(9, other)) for _ in range(2)] == [first, second]
    assert first != second


def test_a_batch_is_a_copy() -> None:
    """It does not change when the ring buffer wraps around."""
    replay = ReplayBuffer(6, 3, env_codec())
    envs = Envs(replay, 3, ends=0.0)
    envs.step()
    batch = replay.sample(20, generator())
    before = transitions(batch)
    for _ in range(9):
        envs.step()
    assert transitions(batch) == before


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["vector", "image"])
def test_a_batch_with_flat_memory_is_copied_as_bytes(space: spaces.Box) -> None:
    """All fields are views of one flat tensor; copying that tensor copies the batch."""
    replay = ReplayBuffer(20, 2, env_codec(space))
    random = np.random.default_rng(0)

    def observations() -> np.ndarray:
        return random.integers(0, 256, (2, *space.shape)).astype(space.dtype)

    replay.begin(observations())
    for _ in range(9):
        ended = random.random(2) < 0.5
        replay.add(random.random((2, 2)), random.random(2), observations(), ended, np.ones(2, bool))
    flat, batch = replay.empty(7)
    assert replay.sample(7, generator(), batch) is batch
    for name, tensor in vars(replay.sample(7, generator())).items():
        assert torch.equal(getattr(batch, name), tensor), name
    target, copied = replay.empty(7, torch.device("cpu"))
    target.copy_(flat)
    for name, tensor in vars(batch).items():
        assert torch.equal(getattr(copied, name), tensor), name
        assert getattr(copied, name).dtype == tensor.dtype
    assert replay.empty(7, torch.device("meta"))[1].rewards.device.type == "meta"


def test_images_are_stored_once_and_as_bytes() -> None:
    """A sample contains the images of its own environment."""
    replay = ReplayBuffer(8, 2, env_codec(IMAGE))
    images = np.random.default_rng(0).integers(0, 256, (2, 2, *IMAGE.shape), np.uint8)
    replay.begin(images[0])
    replay.add(torch.zeros(2, 2), np.zeros(2), images[1], np.zeros(2, bool), np.ones(2, bool))
    batch = replay.sample(30, generator())
    assert batch.observations.dtype == batch.next_observations.dtype == torch.uint8
    environment = (batch.observations.numpy() == images[0, 1]).all((1, 2, 3)).astype(int)
    assert set(environment) == {0, 1}
    assert (batch.observations.numpy() == images[0, environment]).all()
    assert (batch.next_observations.numpy() == images[1, environment]).all()
    large = [t for t in replay.state().values() if isinstance(t, Tensor) and t.numel() > 100]
    assert [(tuple(t.shape), t.dtype) for t in large] == [((5, 2, *IMAGE.shape), torch.uint8)]


# Checkpoints.


def saved_state(replay: ReplayBuffer) -> dict[str, Any]:
    """Returns the state after saving it to a file and loading it."""
    file = io.BytesIO()
    torch.save(replay.state(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


@every_size
@pytest.mark.parametrize("steps", [0, 1, 4, 5, 23])
def test_a_restored_replay_buffer_continues(capacity: int, B: int, steps: int) -> None:
    """It contains all transitions, except that the unfinished step takes up one row."""
    replay, rows, count = ReplayBuffer(capacity, B, env_codec()), [], 0
    for session in range(3):
        envs = Envs(replay, B, count=count)
        for _ in range(steps * (session < 2)):  # the last session has no step
            envs.step()
        rows += [*envs.rows, []]
        count = envs.count
        state, replay = saved_state(replay), ReplayBuffer(capacity, B, env_codec())
        assert replay.restore(state)
        assert sampleable(replay) == newest(rows, capacity, B)
    envs = Envs(replay, B, count=count)
    for _ in range(3 * (capacity // B + 2)):
        envs.step()
        expected = newest(rows + envs.rows, capacity, B)
        assert sampleable(replay) == expected
        assert len(replay) == len(expected)


OTHER_STATES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "larger": lambda state: ReplayBuffer(13, 3, env_codec()).state(),
    "fewer environments": lambda state: ReplayBuffer(8, 2, env_codec()).state(),
    "images": lambda state: ReplayBuffer(12, 3, env_codec(IMAGE)).state(),
    "other actions": lambda state: ReplayBuffer(12, 3, env_codec(actions=3)).state(),
    "other dtype": lambda state: {**state, "_observations": state["_observations"].int()},
    "other type": lambda state: {**state, "_row": str(state["_row"])},
    "incomplete": lambda state: dict(list(state.items())[:-1]),
    "empty": lambda state: {},
}


@pytest.mark.parametrize("other", OTHER_STATES.values(), ids=OTHER_STATES.keys())
def test_restore_rejects_other_states_and_changes_nothing(
    other: Callable[[dict[str, Any]], dict[str, Any]],
) -> None:
    replay = ReplayBuffer(12, 3, env_codec())
    envs = Envs(replay, 3)
    for _ in range(6):
        envs.step()
    before, expected = saved_state(replay), newest(envs.rows, 12, 3)
    assert not replay.restore(other(saved_state(replay)))
    for key, value in replay.state().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[key]))
    assert sampleable(replay) == expected
    envs.step()
    assert sampleable(replay) == newest(envs.rows, 12, 3)
    assert replay.restore(before)


# Memory.


@pytest.mark.parametrize("space", [VECTOR, IMAGE], ids=["floats", "bytes"])
@pytest.mark.parametrize(("capacity", "B"), [(1_000, 1), (1_000, 16), (1_001, 16)])
def test_size_in_bytes_is_that_of_the_tensors(space: spaces.Box, capacity: int, B: int) -> None:
    """Exact, except for one counter of 8 bytes per row."""
    expected = size_in_bytes(capacity, B, env_codec(space, actions=5))
    state = ReplayBuffer(capacity, B, env_codec(space, actions=5)).state()
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    actual = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert 0 <= actual - expected <= 8 * (math.ceil(capacity / B) + 1)
    assert len(tensors) == 6
