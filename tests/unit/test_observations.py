"""Tests of the observation codec against gymnasium's flattening, and of image detection."""

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
COLOUR = spaces.Box(0, 255, (18, 16, 3), np.uint8)
GREY = spaces.Box(0, 255, (16, 17), np.uint8)
WITH_IMAGES = {
    "dict": spaces.Dict(
        a=COLOUR, b=spaces.Discrete(3), c=GREY, d=spaces.Box(-1, 1, (2,), np.float32)
    ),
    "nested": spaces.Tuple(
        (spaces.Dict(camera=COLOUR, at=spaces.MultiDiscrete([2, 2])), GREY, spaces.MultiBinary(3))
    ),
    "alone in a dict": spaces.Dict(camera=GREY),
}
with_images = pytest.mark.parametrize("space", WITH_IMAGES.values(), ids=WITH_IMAGES.keys())


class Constant(gymnasium.Env[Any, Any]):
    """Environment with a constant observation."""

    def __init__(self, space: Space[Any], observation: Any) -> None:
        self.observation_space, self.action_space = space, spaces.Discrete(2)
        self._observation = observation

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return self._observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observation, 0.0, False, False, {}


def samples(space: Space[Any]) -> list[Any]:
    space.seed(7)
    return [space.sample() for _ in range(B)]


def batch_of(space: Space[Any], observations: list[Any]) -> Any:
    """Returns these observations as a vector environment batches them."""
    envs = SyncVectorEnv([lambda each=each: Constant(space, each) for each in observations])
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


def flatten_images_last(space: Space[Any], observation: Any) -> Any:
    """Flattens all parts with gymnasium; the images COLOUR and GREY come last."""
    parts = list(leaves(space, observation))
    others = [spaces.flatten(part, seen) for part, seen in parts if part not in (COLOUR, GREY)]
    images = [seen.ravel() for part, seen in parts if part in (COLOUR, GREY)]
    return np.concatenate([*others, *images])


@every_space
def test_a_row_equals_gymnasium_s_flattening(space: Space[Any]) -> None:
    codec, observations = ObservationCodec.of(space), samples(space)
    for observation in observations:
        expected = spaces.flatten(space, observation).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(codec.row(observation), codec.dtype), expected)
    assert codec.shape == spaces.flatten_space(space).shape
    assert (codec.vector, codec.images, codec.dtype) == (codec.shape[0], (), np.float32)


@every_space
def test_rows_of_a_batch_equal_the_rows_of_its_observations(space: Space[Any]) -> None:
    codec, observations = ObservationCodec.of(space), samples(space)
    rows = codec.rows(batch_of(space, observations))
    expected = np.stack([spaces.flatten(space, each) for each in observations]).astype(np.float32)
    np.testing.assert_array_equal(rows.astype(codec.dtype), expected)
    assert len({row.tobytes() for row in rows}) > 1  # their order matters


@with_images
def test_images_come_last_in_a_row(space: Space[Any]) -> None:
    codec, observations = ObservationCodec.of(space), samples(space)
    expected = np.stack([flatten_images_last(space, each) for each in observations])
    rows = codec.rows(batch_of(space, observations))
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(np.stack([codec.row(each) for each in observations]), expected)
    pixels = sum(int(np.prod(image.shape)) for image in codec.images)
    assert rows.dtype == codec.dtype == np.float32
    assert codec.shape == (codec.vector + pixels,) == rows[0].shape
    parts = [part for part, _ in leaves(space, observations[0]) if part in (COLOUR, GREY)]
    assert [image.shape for image in codec.images] == [part.shape for part in parts]


@pytest.mark.parametrize(
    ("shape", "channels_first", "chw"),
    [
        ((210, 160, 3), False, (3, 210, 160)),
        ((84, 84, 1), False, (1, 84, 84)),
        ((4, 84, 84), True, (4, 84, 84)),
        ((3, 96, 64), True, (3, 96, 64)),
        ((84, 80), True, (1, 84, 80)),
        ((4, 96, 64, 3), False, (12, 96, 64)),
        ((4, 3, 96, 64), True, (12, 96, 64)),
        ((2, 3, 16, 16), True, (6, 16, 16)),
        ((2, 16, 16, 3), False, (6, 16, 16)),
        ((18, 18, 7), False, (7, 18, 18)),
    ],
)
def test_images_are_detected_and_stay_bytes(shape: Any, channels_first: Any, chw: Any) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    assert as_image(space) == Image(shape, channels_first)
    codec, observations = ObservationCodec.of(space), samples(space)
    assert (codec.shape, codec.dtype, codec.vector) == (shape, np.uint8, 0)
    assert [image.chw for image in codec.images] == [chw]
    rows = codec.rows(batch_of(space, observations))
    assert rows.dtype == np.uint8
    np.testing.assert_array_equal(rows, np.stack(observations))
    np.testing.assert_array_equal(codec.row(observations[1]), observations[1])


@pytest.mark.parametrize("shape", [(20, 18, 3), (3, 20, 18), (2, 20, 18, 3), (2, 3, 20, 18)])
@pytest.mark.parametrize(
    ("low", "high", "dtype", "row_dtype"),
    [
        (0, 255, np.int64, np.uint8),
        (0, 255, np.int16, np.uint8),
        (0, 255, np.float32, np.float32),
        (0, 1, np.float32, np.float32),
        (-1, 1, np.float64, np.float32),
        (0, 1, np.float16, np.float32),
    ],
)
def test_images_of_other_dtypes_are_detected_with_their_range(
    low: int, high: int, dtype: Any, row_dtype: Any, shape: Any
) -> None:
    space = spaces.Box(low, high, shape, dtype)
    codec, observations = ObservationCodec.of(space), samples(space)
    assert codec.images == (Image(shape, shape[-1] == 18, high),)
    assert codec.images[0].chw == (3 * shape[0] if len(shape) == 4 else 3, 20, 18)
    assert (codec.shape, codec.dtype, codec.vector) == (shape, row_dtype, 0)
    rows = codec.rows(batch_of(space, observations)).astype(row_dtype)
    np.testing.assert_array_equal(rows, np.stack(observations).astype(np.float32))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 255, (7, 7, 3), np.uint8),
        spaces.Box(0, 255, (15, 20, 3), np.uint8),
        spaces.Box(0, 255, (3, 20, 15), np.uint8),
        spaces.Box(0, 255, (15, 20), np.uint8),
        spaces.Box(0, 255, (2, 3, 15, 20), np.uint8),
        spaces.Box(0, 1, (3, 4, 5), np.float32),
        spaces.Box(0, 1, (20, 20, 3), np.uint8),
        spaces.Box(0, 10, (20, 20, 3), np.float32),
        spaces.Box(0, 1, (20, 20, 3), np.int64),
        spaces.Box(-128, 127, (20, 20, 3), np.int8),
        spaces.Box(-np.inf, np.inf, (20, 20, 3), np.float32),
        spaces.Box(1, 255, (20, 20), np.uint8),
        spaces.Box(0, 1, (20, 20), np.float32),
        spaces.Box(0, 255, (20, 20), np.int64),
        spaces.Box(0, np.r_[254, [255] * 399].reshape(20, 20).astype(np.uint8), dtype=np.uint8),
        spaces.Box(np.r_[-1, [0] * 1199].reshape(20, 20, 3).astype(np.float32), 1),
        spaces.Box(0, 255, (20, 20, 17), np.uint8),
        spaces.Box(0, 255, (17, 20, 20), np.uint8),
        spaces.Box(0, 255, (2, 20, 20, 17), np.uint8),
        spaces.Box(0, 255, (64,), np.uint8),
        spaces.Box(0, 255, (2, 2, 20, 20, 3), np.uint8),
        spaces.MultiBinary((20, 20, 3)),
        spaces.Discrete(256),
    ],
    ids=str,
)
def test_spaces_that_are_not_images_are_flattened(space: Space[Any]) -> None:
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
    "wrap",
    [
        lambda space: space,
        lambda space: spaces.Dict(camera=GREY, words=space),
        lambda space: spaces.Tuple((spaces.Dict(deep=spaces.Tuple((space,))), spaces.Discrete(2))),
    ],
    ids=["alone", "in a dict", "deep"],
)
def test_unsupported_spaces_raise_a_one_line_error_with_the_name(name: str, wrap: Any) -> None:
    space = wrap(UNSUPPORTED[name])
    for attempt in (
        lambda: ObservationCodec.of(space),
        lambda: ActorCritic(space, spaces.Discrete(2), Architecture()),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert f"observation space {name}(" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("space", [*FLAT.values(), *WITH_IMAGES.values(), COLOUR, GREY], ids=str)
def test_batched_distinguishes_a_batch_from_one_observation(space: Space[Any]) -> None:
    codec, observations = ObservationCodec.of(space), samples(space)
    assert not codec.batched(observations[0])
    assert codec.batched(batch_of(space, observations))
    assert codec.batched(batch_of(space, observations[:1]))


@pytest.mark.parametrize(
    ("space", "given"),
    [
        (spaces.Box(-1, 1, (4,)), np.zeros(3)),
        (spaces.Box(-1, 1, (4,)), np.zeros((2, 3))),
        (spaces.Box(-1, 1, (4,)), np.zeros((5, 2, 4))),
        (spaces.Discrete(3), np.zeros((2, 2), np.int64)),
        (GREY, np.zeros((17, 16), np.uint8)),
        (spaces.Dict(a=spaces.Box(-1, 1, (4,))), {"a": np.zeros(5)}),
    ],
)
def test_batched_rejects_other_shapes(space: Space[Any], given: Any) -> None:
    with pytest.raises(UserError, match="observations must have shape"):
        ObservationCodec.of(space).batched(given)


def test_batched_rejects_a_dict_with_only_some_parts_batched() -> None:
    codec = ObservationCodec.of(spaces.Dict(a=spaces.Box(-1, 1, (4,)), b=spaces.Discrete(3)))
    with pytest.raises(UserError, match="observations must"):
        codec.batched({"a": np.zeros((2, 4)), "b": 1})
