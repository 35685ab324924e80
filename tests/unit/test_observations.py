"""Rows of observations against gymnasium's own flattening, and what counts as a picture."""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import Space, spaces
from gymnasium.vector import SyncVectorEnv

from hogwild_rl.envs.codecs import Image, ObservationCodec, as_image
from hogwild_rl.errors import UserError
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

B = 4
FLAT = {
    "box": spaces.Box(-np.inf, np.inf, (5,), np.float32),
    "box of doubles": spaces.Box(-1e30, 1e30, (2, 3), np.float64),
    "box of one number": spaces.Box(-2, 3, (), np.float32),
    "box of integers": spaces.Box(-7, 900, (2, 2, 2), np.int64),
    "box of short integers": spaces.Box(-128, 127, (3,), np.int8),
    "bytes": spaces.Box(0, 255, (6,), np.uint8),
    "discrete": spaces.Discrete(5),
    "discrete from 3": spaces.Discrete(4, start=3),
    "discrete from -2": spaces.Discrete(4, start=-2),
    "multi-discrete": spaces.MultiDiscrete([3, 1, 4]),
    "multi-discrete in 2-d": spaces.MultiDiscrete([[2, 3], [4, 5]]),
    "multi-discrete with starts": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, -1], [0, 5]]),
    "bits": spaces.MultiBinary(6),
    "bits in 2-d": spaces.MultiBinary((2, 3)),
    "tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2, 2), np.float64))),
    "dict": spaces.Dict(z=spaces.MultiBinary(2), a=spaces.Discrete(3, start=1)),
    "nested": spaces.Dict(
        b=spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.Dict(y=spaces.Box(0, 1, (2,))))),
        a=spaces.Dict(x=spaces.Box(0, 9, (), np.int32), w=spaces.Discrete(2)),
    ),
}
every_space = pytest.mark.parametrize("space", FLAT.values(), ids=FLAT.keys())
COLOUR = spaces.Box(0, 255, (8, 6, 3), np.uint8)
GREY = spaces.Box(0, 255, (5, 7), np.uint8)
WITH_PICTURES = {
    "dict": spaces.Dict(
        a=COLOUR, b=spaces.Discrete(3), c=GREY, d=spaces.Box(-1, 1, (2,), np.float32)
    ),
    "nested": spaces.Tuple(
        (spaces.Dict(eye=COLOUR, at=spaces.MultiDiscrete([2, 2])), GREY, spaces.MultiBinary(3))
    ),
    "alone in a dict": spaces.Dict(eye=GREY),
}
with_pictures = pytest.mark.parametrize("space", WITH_PICTURES.values(), ids=WITH_PICTURES.keys())


class Still(gymnasium.Env[Any, Any]):
    """Shows one observation for ever."""

    def __init__(self, space: Space[Any], shown: Any) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self._shown = shown

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._shown, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._shown, 0.0, False, False, {}


def samples(space: Space[Any]) -> list[Any]:
    space.seed(7)
    return [space.sample() for _ in range(B)]


def batch_of(space: Space[Any], shown: list[Any]) -> Any:
    """What a vector environment gives for these observations."""
    envs = SyncVectorEnv([lambda each=each: Still(space, each) for each in shown])
    return envs.reset()[0]


def leaves(space: Space[Any], observation: Any) -> Iterator[tuple[Space[Any], Any]]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from leaves(part, observation[key])
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from leaves(part, observation[index])
    else:
        yield space, observation


def pictures_last(space: Space[Any], observation: Any) -> Any:
    """Gymnasium's flattening of the parts, those of COLOUR and GREY behind the others."""
    parts = list(leaves(space, observation))
    others = [spaces.flatten(part, seen) for part, seen in parts if part not in (COLOUR, GREY)]
    pictures = [seen.ravel() for part, seen in parts if part in (COLOUR, GREY)]
    return np.concatenate([*others, *pictures])


@every_space
def test_a_row_is_what_gymnasium_flattens_to(space: Space[Any]) -> None:
    codec, shown = ObservationCodec.of(space), samples(space)
    for observation in shown:
        expected = spaces.flatten(space, observation).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(codec.row(observation), codec.dtype), expected)
    assert codec.shape == spaces.flatten_space(space).shape
    assert (codec.vector, codec.images, codec.dtype) == (codec.shape[0], (), np.float32)


@every_space
def test_rows_of_a_vector_environment_are_those_of_its_observations(space: Space[Any]) -> None:
    codec, shown = ObservationCodec.of(space), samples(space)
    rows = codec.rows(batch_of(space, shown))
    expected = np.stack([spaces.flatten(space, each) for each in shown]).astype(np.float32)
    np.testing.assert_array_equal(rows.astype(codec.dtype), expected)
    assert len({row.tobytes() for row in rows}) > 1  # or any order of rows would do


@with_pictures
def test_pictures_among_the_parts_come_last(space: Space[Any]) -> None:
    codec, shown = ObservationCodec.of(space), samples(space)
    expected = np.stack([pictures_last(space, each) for each in shown])
    rows = codec.rows(batch_of(space, shown))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(np.stack([codec.row(each) for each in shown]), expected)
    pixels = sum(int(np.prod(image.shape)) for image in codec.images)
    assert rows.dtype == codec.dtype == np.float32
    assert codec.shape == (codec.vector + pixels,) == rows[0].shape
    kinds = [part for part, _ in leaves(space, shown[0]) if part in (COLOUR, GREY)]
    assert [image.shape for image in codec.images] == [part.shape for part in kinds]


@pytest.mark.parametrize(
    ("shape", "channels_first", "chw"),
    [
        ((210, 160, 3), False, (3, 210, 160)),
        ((84, 84, 1), False, (1, 84, 84)),
        ((4, 84, 84), True, (4, 84, 84)),
        ((3, 96, 64), True, (3, 96, 64)),
        ((84, 80), False, (1, 84, 80)),
        ((4, 96, 64, 3), False, (12, 96, 64)),
        ((10, 10, 7), False, (7, 10, 10)),
    ],
)
def test_pictures_are_found_out_and_stay_bytes(shape: Any, channels_first: Any, chw: Any) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    assert as_image(space) == Image(shape, channels_first)
    codec, shown = ObservationCodec.of(space), samples(space)
    assert (codec.shape, codec.dtype, codec.vector) == (shape, np.uint8, 0)
    assert [image.chw for image in codec.images] == [chw]
    rows = codec.rows(batch_of(space, shown))
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows, np.stack(shown))
    np.testing.assert_array_equal(codec.row(shown[1]), shown[1])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (8, 8, 3), np.float32),
        spaces.Box(0, 255, (8, 8, 3), np.int16),
        spaces.Box(0, 1, (8, 8, 3), np.uint8),
        spaces.Box(1, 255, (8, 8), np.uint8),
        spaces.Box(0, np.r_[[254], [255] * 15].reshape(4, 4).astype(np.uint8), dtype=np.uint8),
        spaces.Box(0, 255, (20, 20, 17), np.uint8),
        spaces.Box(0, 255, (17, 20, 20), np.uint8),
        spaces.Box(0, 255, (2, 20, 20, 17), np.uint8),
        spaces.Box(0, 255, (64,), np.uint8),
        spaces.Box(0, 255, (2, 2, 8, 8, 3), np.uint8),
        spaces.MultiBinary((8, 8)),
        spaces.Discrete(256),
    ],
    ids=str,
)
def test_what_is_no_picture_is_flat(space: Space[Any]) -> None:
    assert as_image(space) is None
    codec = ObservationCodec.of(space)
    assert (codec.images, codec.dtype) == ((), np.float32)
    assert codec.shape == (codec.vector,) == spaces.flatten_space(space).shape


UNSUPPORTED = {
    "Text": spaces.Text(5),
    "Sequence": spaces.Sequence(spaces.Discrete(3)),
    "Graph": spaces.Graph(spaces.Box(0, 1, (2,)), spaces.Discrete(3)),
    "OneOf": spaces.OneOf([spaces.Discrete(3), spaces.Box(0, 1, (2,))]),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
@pytest.mark.parametrize(
    "around",
    [
        lambda space: space,
        lambda space: spaces.Dict(eye=GREY, words=space),
        lambda space: spaces.Tuple((spaces.Dict(deep=spaces.Tuple((space,))), spaces.Discrete(2))),
    ],
    ids=["alone", "in a dict", "deep"],
)
def test_other_spaces_are_refused_by_name_on_one_line(name: str, around: Any) -> None:
    space = around(UNSUPPORTED[name])
    for attempt in (
        lambda: ObservationCodec.of(space),
        lambda: ActorCritic(space, spaces.Discrete(2), Architecture()),
    ):
        with pytest.raises(UserError) as refusal:
            attempt()
        assert f"observation space {name}(" in str(refusal.value)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("space", [*FLAT.values(), *WITH_PICTURES.values(), COLOUR, GREY], ids=str)
def test_one_observation_is_told_from_a_batch_of_them(space: Space[Any]) -> None:
    codec, shown = ObservationCodec.of(space), samples(space)
    assert not codec.batched(shown[0])
    assert codec.batched(batch_of(space, shown))
    assert codec.batched(batch_of(space, shown[:1]))


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.Box(-1, 1, (4,)), np.zeros(3)),
        (spaces.Box(-1, 1, (4,)), np.zeros((2, 3))),
        (spaces.Box(-1, 1, (4,)), np.zeros((5, 2, 4))),
        (spaces.Discrete(3), np.zeros((2, 2), np.int64)),
        (GREY, np.zeros((7, 5), np.uint8)),
        (spaces.Dict(a=spaces.Box(-1, 1, (4,))), {"a": np.zeros(5)}),
    ],
)
def test_neither_one_nor_a_batch_is_refused(space: Space[Any], given: Any) -> None:
    with pytest.raises(UserError, match="observations must have shape"):
        ObservationCodec.of(space).batched(given)


def test_one_part_of_a_batch_beside_one_of_a_single_observation_is_refused() -> None:
    codec = ObservationCodec.of(spaces.Dict(a=spaces.Box(-1, 1, (4,)), b=spaces.Discrete(3)))
    with pytest.raises(UserError, match="observations must"):
        codec.batched({"a": np.zeros((2, 4)), "b": 1})
