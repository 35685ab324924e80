"""Tests of ActionCodec: conversion of the policy's actions for the environment."""

import pickle
import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from hogwild_rl import errors
from hogwild_rl.envs.codecs import ActionCodec

B = 50
INF = np.inf
LARGEST = float(np.finfo(np.float32).max)
DISCRETE = {
    "discrete": spaces.Discrete(4),
    "from 3": spaces.Discrete(4, start=3),
    "from -2": spaces.Discrete(4, start=-2),
    "int32": spaces.Discrete(4, dtype=np.int32),
    "narrow": spaces.Discrete(100, start=100, dtype=np.uint8),
}
MULTI = {
    "multidiscrete": spaces.MultiDiscrete([2, 5, 3]),
    "multidiscrete from": spaces.MultiDiscrete([2, 5, 3], start=[10, -5, 0]),
    "multidiscrete matrix": spaces.MultiDiscrete([[2, 5, 3], [4, 1, 2]], dtype=np.int32),
    "multidiscrete unsigned": spaces.MultiDiscrete([[2], [5]], np.uint64, start=[[2**60 + 1], [0]]),
    "multibinary": spaces.MultiBinary(4),
    "multibinary matrix": spaces.MultiBinary([2, 3]),
}
BOXES = {
    "box": spaces.Box(-1, 1, (3,)),
    "box own bounds": spaces.Box(np.array([-2, 0.1, -INF]), np.array([-1, 0.3, 5]), dtype=float),
    "box matrix": spaces.Box(np.full((2, 3), -0.7, np.float32), np.full((2, 3), 0.1, np.float32)),
    "box half": spaces.Box(-0.1, 0.3, (2,), np.float16),
    "box unbounded": spaces.Box(-INF, INF, (2,)),
    "box largest": spaces.Box(-LARGEST, LARGEST, (2,)),
}
ALL = {**DISCRETE, **MULTI, **BOXES}
SIZES = {"multidiscrete matrix": 6, "multidiscrete unsigned": 2, "multibinary": 4, "box half": 2}
SIZES |= {"multibinary matrix": 6, "box matrix": 6, "box unbounded": 2, "box largest": 2}


def policy_actions(name: str) -> np.ndarray[Any, Any]:
    """Random actions of a policy, [B, *A]: choices counted from 0, unbounded numbers."""
    space, rng = ALL[name], np.random.default_rng(0)
    if isinstance(space, spaces.Discrete):
        return rng.integers(int(space.n), size=B)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.nvec.reshape(-1).astype(np.int64), size=(B, space.nvec.size))
    size = SIZES.get(name, 3)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(2, size=(B, size))
    return (3 * rng.standard_normal((B, size))).astype(np.float32)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_converted_actions_are_in_the_action_space(name: str, rescale: bool) -> None:
    """Shape, dtype and bounds are those of the space; the policy's actions are not modified."""
    space, sampled = ALL[name], policy_actions(name)
    before = sampled.copy()
    converted = ActionCodec.of(space, rescale).to_env(sampled)
    assert converted.dtype == space.dtype
    assert converted.shape == (B, *(space.shape or ()))
    assert all(space.contains(row) for row in converted)
    assert np.array_equal(sampled, before)


@pytest.mark.parametrize("name", ALL)
def test_codec_shape_and_dtype_equal_those_of_policy_actions(name: str) -> None:
    """Discrete actions are scalars, all others have one axis; Box actions are float32."""
    codec, sampled = ActionCodec.of(ALL[name]), policy_actions(name)
    assert codec.shape == sampled.shape[1:]
    assert codec.dtype == sampled.dtype


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_actions_are_offset_by_start(name: str) -> None:
    """Action 0 of the policy is the space's first action."""
    space = DISCRETE[name]
    converted = ActionCodec.of(space).to_env(np.arange(int(space.n)))
    assert converted.tolist() == [int(space.start) + i for i in range(int(space.n))]


def test_discrete_int64_actions_without_offset_are_not_copied() -> None:
    sampled = np.array([3, 0, 2])
    assert ActionCodec.of(spaces.Discrete(4)).to_env(sampled) is sampled


def test_flat_actions_are_in_row_major_order() -> None:
    """The last axis of the space varies fastest, as in flattened nvec, start and bounds."""
    flat = np.arange(6)[None]
    many = spaces.MultiDiscrete(np.full((2, 3), 6), start=[[0, 10, 20], [30, 40, 50]])
    assert ActionCodec.of(many).to_env(flat).tolist() == [[[0, 11, 22], [33, 44, 55]]]
    bits = ActionCodec.of(spaces.MultiBinary([2, 2])).to_env(np.array([[1, 0, 0, 0]]))
    assert bits.tolist() == [[[1, 0], [0, 0]]]
    low = np.array([[0, 10, 20], [30, 40, 50]], np.float32)
    box = spaces.Box(low, low + 5)
    assert ActionCodec.of(box).to_env(flat.astype(np.float32)).tolist() == [
        [[0, 10, 20], [30, 40, 50]]
    ]
    assert ActionCodec.of(box).to_env(np.full((1, 6), 33, np.float32)).tolist() == [
        [[5, 15, 25], [33, 40, 50]]
    ]


def test_scalar_box_removes_the_policys_axis() -> None:
    codec = ActionCodec.of(spaces.Box(-1, 1, ()))
    assert codec.shape == (1,)
    assert codec.to_env(np.array([[0.5], [3]], np.float32)).tolist() == [0.5, 1]


def test_actions_within_the_bounds_are_unchanged() -> None:
    """Clipping keeps them bit for bit; without bounds it changes no action."""
    sampled = np.array([[0.1, -0.7, 1], [5, -5, 0.3]], np.float32)
    converted = ActionCodec.of(spaces.Box(-1, 1, (3,))).to_env(sampled)
    assert np.array_equal(converted, np.array([[0.1, -0.7, 1], [1, -1, 0.3]], np.float32))
    free = ActionCodec.of(spaces.Box(-INF, INF, (3,)))
    assert np.array_equal(free.to_env(1000 * sampled), 1000 * sampled)


def test_rescaling_maps_the_unit_interval_to_the_bounds() -> None:
    """−1, 0 and 1 become low, the midpoint and high; other actions are clipped to the bounds."""
    space = spaces.Box(np.array([2, -10], np.float32), np.array([6, 0], np.float32))
    sampled = np.array([[-1, -1], [0, 0], [0.5, 1], [1, 0.2], [-7, 7]], np.float32)
    converted = ActionCodec.of(space, rescale=True).to_env(sampled)
    expected = np.array([[2, -10], [4, -5], [5, 0], [6, -4], [2, 0]], np.float32)
    np.testing.assert_allclose(converted, expected, rtol=1e-7, atol=1e-6)


def test_rescaling_only_clips_dimensions_without_both_bounds() -> None:
    space = spaces.Box(np.array([0, 0, -INF, -INF]), np.array([10, INF, 2, INF]), dtype=np.float64)
    converted = ActionCodec.of(space, rescale=True).to_env(
        np.array([[0.5] * 4, [-3] * 4, [3] * 4], np.float32)
    )
    assert converted.tolist() == [[7.5, 0.5, 0.5, 0.5], [0, 0, -3, -3], [10, 3, 2, 3]]


def test_rescaling_reaches_the_bounds_exactly() -> None:
    """±1 become the bounds bit for bit."""
    for space in (spaces.Box(0.1, 0.3, (1,)), spaces.Box(-1, 3, (1,), float)):
        assert isinstance(space, spaces.Box)
        actions = np.repeat(np.array([[-1], [1]], np.float32), space.shape[0], axis=1)
        converted = ActionCodec.of(space, rescale=True).to_env(actions)
        assert np.array_equal(converted, np.stack([space.low, space.high]))


def test_bounds_of_the_largest_numbers_count_as_none() -> None:
    space = BOXES["box largest"]
    sampled = np.array([[-2] * space.shape[0]], np.float32)
    assert ActionCodec.of(space, rescale=True).to_env(sampled).tolist() == sampled.tolist()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_pickled_codecs_give_the_same_actions(name: str, rescale: bool) -> None:
    codec, sampled = ActionCodec.of(ALL[name], rescale), policy_actions(name)
    copy = pickle.loads(pickle.dumps(codec))
    assert (copy.shape, copy.dtype) == (codec.shape, codec.dtype)
    assert np.array_equal(copy.to_env(sampled), codec.to_env(sampled))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"move": spaces.Discrete(2)}),
        spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (2,))]),
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Box(0, 255, (2,), np.uint8),
    ],
    ids=["dict", "tuple", "text", "sequence", "integers"],
)
def test_unsupported_spaces_raise(space: gymnasium.Space[Any]) -> None:
    """The message names the space and the supported ones."""
    with pytest.raises(errors.UserError, match=re.escape(str(space))) as error:
        ActionCodec.of(space)
    assert str(error.value).endswith(
        "is not supported: use Discrete, MultiDiscrete, MultiBinary or Box of floats"
    )


def test_error_message_for_a_wide_space_is_one_line() -> None:
    """The space's own representation has several lines."""
    bounds = np.arange(1, 61)
    space = spaces.Box(-bounds, bounds, dtype=np.int64)
    assert "\n" in str(space)
    with pytest.raises(errors.UserError, match="Box") as error:
        ActionCodec.of(space)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_vector_environments_accept_converted_actions(env: str) -> None:
    envs = gymnasium.make_vec(env, 3, vectorization_mode="sync")
    codec = ActionCodec.of(envs.single_action_space)
    envs.reset(seed=0)
    converted = codec.to_env(np.ones((3, *codec.shape), codec.dtype))
    assert envs.action_space.contains(converted)
    envs.step(converted)
    envs.close()
