"""A policy's actions on their way to the environment."""

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
    """What a policy may draw, [B, *A]: any choice counted from 0, any number."""
    space, stream = ALL[name], np.random.default_rng(0)
    if isinstance(space, spaces.Discrete):
        return stream.integers(int(space.n), size=B)
    if isinstance(space, spaces.MultiDiscrete):
        return stream.integers(space.nvec.reshape(-1).astype(np.int64), size=(B, space.nvec.size))
    size = SIZES.get(name, 3)
    if isinstance(space, spaces.MultiBinary):
        return stream.integers(2, size=(B, size))
    return (3 * stream.standard_normal((B, size))).astype(np.float32)


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_row_is_an_action_of_the_space(name: str, rescale: bool) -> None:
    """Of its shape, dtype and bounds, whatever the policy drew; and what it drew stays."""
    space, drawn = ALL[name], policy_actions(name)
    before = drawn.copy()
    taken = ActionCodec.of(space, rescale).to_env(drawn)
    assert taken.dtype == space.dtype
    assert taken.shape == (B, *(space.shape or ()))
    assert all(space.contains(row) for row in taken)
    assert np.array_equal(drawn, before)


@pytest.mark.parametrize("name", ALL)
def test_shape_and_dtype_are_those_of_the_policys_actions(name: str) -> None:
    """A single choice is a number, all else has one axis; numbers of a Box are float32."""
    codec, drawn = ActionCodec.of(ALL[name]), policy_actions(name)
    assert codec.shape == drawn.shape[1:]
    assert codec.dtype == drawn.dtype


@pytest.mark.parametrize("name", DISCRETE)
def test_choices_are_counted_from_the_start(name: str) -> None:
    """Action 0 of the policy is the first of the space."""
    space = DISCRETE[name]
    taken = ActionCodec.of(space).to_env(np.arange(int(space.n)))
    assert taken.tolist() == [int(space.start) + i for i in range(int(space.n))]


def test_plain_choices_are_handed_through() -> None:
    """From 0 and in int64, nothing is computed and nothing copied."""
    drawn = np.array([3, 0, 2])
    assert ActionCodec.of(spaces.Discrete(4)).to_env(drawn) is drawn


def test_flat_actions_are_laid_out_row_by_row() -> None:
    """The last axis of the space varies fastest, as in nvec, start and bounds flattened."""
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


def test_a_space_without_axes_takes_one_number() -> None:
    """The policy's axis of one goes."""
    codec = ActionCodec.of(spaces.Box(-1, 1, ()))
    assert codec.shape == (1,)
    assert codec.to_env(np.array([[0.5], [3]], np.float32)).tolist() == [0.5, 1]


def test_numbers_within_the_bounds_are_not_changed() -> None:
    """Clipping leaves them to the bit, and without bounds it leaves all."""
    drawn = np.array([[0.1, -0.7, 1], [5, -5, 0.3]], np.float32)
    taken = ActionCodec.of(spaces.Box(-1, 1, (3,))).to_env(drawn)
    assert np.array_equal(taken, np.array([[0.1, -0.7, 1], [1, -1, 0.3]], np.float32))
    free = ActionCodec.of(spaces.Box(-INF, INF, (3,)))
    assert np.array_equal(free.to_env(1000 * drawn), 1000 * drawn)


def test_rescaling_maps_the_unit_interval_to_the_bounds() -> None:
    """−1, 0 and 1 become low, the middle and high; beyond them the bounds hold."""
    space = spaces.Box(np.array([2, -10], np.float32), np.array([6, 0], np.float32))
    drawn = np.array([[-1, -1], [0, 0], [0.5, 1], [1, 0.2], [-7, 7]], np.float32)
    taken = ActionCodec.of(space, rescale=True).to_env(drawn)
    expected = np.array([[2, -10], [4, -5], [5, 0], [6, -4], [2, 0]], np.float32)
    np.testing.assert_allclose(taken, expected, rtol=1e-7, atol=1e-6)


def test_rescaling_leaves_what_lacks_a_bound() -> None:
    """Dimensions open at one end or both are clipped only; those beside them are mapped."""
    space = spaces.Box(np.array([0, 0, -INF, -INF]), np.array([10, INF, 2, INF]), dtype=np.float64)
    taken = ActionCodec.of(space, rescale=True).to_env(
        np.array([[0.5] * 4, [-3] * 4, [3] * 4], np.float32)
    )
    assert taken.tolist() == [[7.5, 0.5, 0.5, 0.5], [0, 0, -3, -3], [10, 3, 2, 3]]


def test_rescaling_reaches_the_bounds_exactly() -> None:
    """±1 are the bounds to the bit, also where these are the largest numbers there are."""
    for space in (spaces.Box(0.1, 0.3, (1,)), BOXES["box largest"], spaces.Box(-1, 3, (1,), float)):
        assert isinstance(space, spaces.Box)
        ends = np.repeat(np.array([[-1], [1]], np.float32), space.shape[0], axis=1)
        taken = ActionCodec.of(space, rescale=True).to_env(ends)
        assert np.array_equal(taken, np.stack([space.low, space.high]))


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_codecs_can_be_sent_to_workers(name: str, rescale: bool) -> None:
    """A copy that was pickled gives the same actions."""
    codec, drawn = ActionCodec.of(ALL[name], rescale), policy_actions(name)
    copy = pickle.loads(pickle.dumps(codec))
    assert (copy.shape, copy.dtype) == (codec.shape, codec.dtype)
    assert np.array_equal(copy.to_env(drawn), codec.to_env(drawn))


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
def test_other_spaces_are_refused(space: gymnasium.Space[Any]) -> None:
    """One line names the space and what there is instead."""
    with pytest.raises(errors.UserError, match=re.escape(str(space))) as caught:
        ActionCodec.of(space)
    assert str(caught.value).endswith(
        "is not supported: use Discrete, MultiDiscrete, MultiBinary or Box of floats"
    )


def test_a_wide_space_is_refused_in_one_line() -> None:
    """A space whose bounds fill several lines when printed is still printed in one."""
    bounds = np.arange(1, 61)
    space = spaces.Box(-bounds, bounds, dtype=np.int64)
    assert "\n" in str(space)
    with pytest.raises(errors.UserError, match="Box") as caught:
        ActionCodec.of(space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0"])
def test_vector_environments_take_them(env: str) -> None:
    """A batch of actions is one of the vector environment's own action space."""
    envs = gymnasium.make_vec(env, 3, vectorization_mode="sync")
    codec = ActionCodec.of(envs.single_action_space)
    envs.reset(seed=0)
    taken = codec.to_env(np.ones((3, *codec.shape), codec.dtype))
    assert envs.action_space.contains(taken)
    envs.step(taken)
    envs.close()
