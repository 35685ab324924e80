"""Snapshots of environments make others go on alike, and cannot run code."""

import collections
import io
import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from hogwild_rl.envs import vectorize
from hogwild_rl.training import env_snapshot

IN_PYTHON = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "Blackjack-v1"]


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(value: object) -> list[np.ndarray]:
    return [a for v in value for a in flat(v)] if isinstance(value, tuple) else [np.asarray(value)]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("env", IN_PYTHON)
def test_environments_go_on_where_others_stood(env, native) -> None:
    def make(seed: int):
        made = vectorize.native(env, 3) if native else vectorize.sync_vector_env(env, 3)
        if made is None:
            pytest.skip("it has no native form")
        made.reset(seed=seed)
        return made

    one, other = make(1), make(2)
    one.action_space.seed(0)
    actions = [one.action_space.sample() for _ in range(400)]
    for action in actions[:201]:
        one.step(action)
    env_snapshot.give(other, through_a_file(env_snapshot.take(one)))
    for action in actions[201:]:
        for a, b in zip(flat(one.step(action)[:4]), flat(other.step(action)[:4]), strict=True):
            np.testing.assert_array_equal(a, b)


class Thing:
    def __init__(self, **parts) -> None:
        vars(self).update(parts)


def test_every_kind_of_part_comes_back_as_it_was() -> None:
    rng = np.random.Generator(np.random.MT19937(3))
    shared = [1, 2]
    parts = {
        "number": np.float32(0.5),
        "letters": np.array([["S", "F"]]),
        "queue": collections.deque([1, (2, {3})], maxlen=5),
        "nested": {("a", 1): Thing(x=b"bytes"), 2: None},
        "one": shared,
        "other": shared,
        "tensor": torch.arange(3),
        "rng": rng,
        "complex": 1 + 2j,
    }
    taken = through_a_file(env_snapshot.take(Thing(**parts)))
    given = Thing(nested={("a", 1): Thing(x=None)}, one=[], function=len)
    env_snapshot.give(given, taken)
    assert given.number == np.float32(0.5)
    assert type(given.number) is np.float32
    assert given.letters.tolist() == [["S", "F"]]
    assert given.queue == parts["queue"]
    assert given.queue.maxlen == 5
    assert given.nested[("a", 1)].x == b"bytes"
    assert given.one is given.other
    assert given.tensor.tolist() == [0, 1, 2]
    assert given.rng.integers(1 << 30, size=5).tolist() == rng.integers(1 << 30, size=5).tolist()
    assert given.complex == 1 + 2j
    assert given.function is len


def test_arrays_are_filled_in_place_so_that_views_of_them_follow() -> None:
    made = Thing(whole=np.zeros(4))
    made.half = made.whole[:2]
    other = Thing(whole=np.arange(4.0))
    other.half = other.whole[:2]
    view = made.whole[2:]
    env_snapshot.give(made, env_snapshot.take(other))
    assert view.tolist() == [2, 3]
    assert made.half.tolist() == [0, 1]


def test_spaces_and_functions_stay_as_they_were_made() -> None:
    space = gymnasium.spaces.Discrete(3)
    made = Thing(space=space, call=print)
    env_snapshot.give(made, env_snapshot.take(Thing(space=gymnasium.spaces.Discrete(9), call=len)))
    assert made.space is space
    assert made.call is print


class Numbers(list):
    """More than its attributes: a snapshot of these alone would lose what is in the list."""


@pytest.mark.parametrize("hidden", [Numbers([1]), io.BytesIO(b"x"), iter([1]), np.array([None])])
def test_what_is_kept_elsewhere_is_named(hidden) -> None:
    with pytest.raises(env_snapshot.OpaqueError, match=r"Thing\.a\.b\[1\] is of "):
        env_snapshot.take(Thing(a=Thing(b=[0, hidden])))


def test_a_snapshot_of_something_else_does_not_fit() -> None:
    with pytest.raises(env_snapshot.MisfitError, match=r"Thing\.a"):
        env_snapshot.give(Thing(a=1), env_snapshot.take(Thing(a=Thing())))


def test_a_forged_generator_is_refused() -> None:
    taken = env_snapshot.take(Thing(rng=np.random.default_rng(0)))
    pairs = taken["parts"]["rng"]["state"]["pairs"]
    pairs[0][1]["value"] = "seed"  # of numpy.random, and callable
    with pytest.raises(env_snapshot.MisfitError):
        env_snapshot.give(Thing(rng=None), taken)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("module", pathlib),
        ("spec", gymnasium.spec("CartPole-v1")),
        ("space", gymnasium.spaces.Discrete(3)),
        ("kind", Thing),
        ("function", through_a_file),
    ],
)
def test_a_forged_object_is_no_way_into_what_stays_as_it_was_made(name: str, there: Any) -> None:
    """Nothing of a module, a spec or a function that an environment refers to can be changed."""
    before = dict(vars(there))
    inside = {"entry_point": {"is": "plain", "value": "os:system"}}
    forged = {"is": "object", "parts": {name: {"is": "object", "parts": inside}}}
    with pytest.raises(env_snapshot.MisfitError):
        env_snapshot.give(Thing(**{name: there}), forged)
    assert dict(vars(there)) == before


@pytest.mark.parametrize("value", [print, Thing(), torch.nn.Linear, [1], torch.zeros(1)])
def test_a_forged_plain_value_is_refused(value: Any) -> None:
    forged = {"is": "object", "parts": {"step": {"is": "plain", "value": value}}}
    made = Thing(step=1)
    with pytest.raises(env_snapshot.MisfitError):
        env_snapshot.give(made, forged)
    assert made.step == 1
