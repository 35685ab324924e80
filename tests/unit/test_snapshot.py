"""Tests of environment snapshots: restored environments continue, and no code is run."""

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

ENVS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "Blackjack-v1"]


def save_and_load(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def flat(value: object) -> list[np.ndarray]:
    return [a for v in value for a in flat(v)] if isinstance(value, tuple) else [np.asarray(value)]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("env", ENVS)
def test_restored_environments_continue_like_the_original(env, native) -> None:
    def make(seed: int):
        envs = vectorize.native(env, 3) if native else vectorize.sequential(env, 3)
        if envs is None:
            pytest.skip("no native vector environment")
        envs.reset(seed=seed)
        return envs

    original, restored = make(1), make(2)
    original.action_space.seed(0)
    actions = [original.action_space.sample() for _ in range(400)]
    for action in actions[:201]:
        original.step(action)
    env_snapshot.restore(restored, save_and_load(env_snapshot.capture(original)))
    for action in actions[201:]:
        expected, found = original.step(action)[:4], restored.step(action)[:4]
        for a, b in zip(flat(expected), flat(found), strict=True):
            np.testing.assert_array_equal(a, b)


class Thing:
    def __init__(self, **parts) -> None:
        vars(self).update(parts)


def test_attributes_of_all_types_are_restored() -> None:
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
    snapshot = save_and_load(env_snapshot.capture(Thing(**parts)))
    restored = Thing(nested={("a", 1): Thing(x=None)}, one=[], function=len)
    env_snapshot.restore(restored, snapshot)
    assert restored.number == np.float32(0.5)
    assert type(restored.number) is np.float32
    assert restored.letters.tolist() == [["S", "F"]]
    assert restored.queue == parts["queue"]
    assert restored.queue.maxlen == 5
    assert restored.nested[("a", 1)].x == b"bytes"
    assert restored.one is restored.other
    assert restored.tensor.tolist() == [0, 1, 2]
    assert restored.rng.integers(1 << 30, size=5).tolist() == rng.integers(1 << 30, size=5).tolist()
    assert restored.complex == 1 + 2j
    assert restored.function is len


def test_arrays_are_restored_in_place() -> None:
    restored = Thing(whole=np.zeros(4))
    restored.half = restored.whole[:2]
    original = Thing(whole=np.arange(4.0))
    original.half = original.whole[:2]
    view = restored.whole[2:]
    env_snapshot.restore(restored, env_snapshot.capture(original))
    assert view.tolist() == [2, 3]
    assert restored.half.tolist() == [0, 1]


def test_spaces_and_functions_are_not_restored() -> None:
    space = gymnasium.spaces.Discrete(3)
    restored = Thing(space=space, call=print)
    original = Thing(space=gymnasium.spaces.Discrete(9), call=len)
    env_snapshot.restore(restored, env_snapshot.capture(original))
    assert restored.space is space
    assert restored.call is print


class ListSubclass(list):
    """Object whose attributes do not contain its whole state."""


@pytest.mark.parametrize("part", [ListSubclass([1]), io.BytesIO(b"x"), iter([1]), np.array([None])])
def test_opaque_state_is_reported_with_its_path(part) -> None:
    with pytest.raises(env_snapshot.OpaqueError, match=r"Thing\.a\.b\[1\] is of "):
        env_snapshot.capture(Thing(a=Thing(b=[0, part])))


def test_a_snapshot_of_another_object_is_rejected() -> None:
    with pytest.raises(env_snapshot.MisfitError, match=r"Thing\.a"):
        env_snapshot.restore(Thing(a=1), env_snapshot.capture(Thing(a=Thing())))


def test_a_forged_generator_is_rejected() -> None:
    snapshot = env_snapshot.capture(Thing(rng=np.random.default_rng(0)))
    pairs = snapshot["parts"]["rng"]["state"]["pairs"]
    pairs[0][1]["value"] = "seed"  # numpy.random.seed, a function
    with pytest.raises(env_snapshot.MisfitError):
        env_snapshot.restore(Thing(rng=None), snapshot)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("module", pathlib),
        ("spec", gymnasium.spec("CartPole-v1")),
        ("space", gymnasium.spaces.Discrete(3)),
        ("type", Thing),
        ("function", save_and_load),
    ],
)
def test_a_forged_object_cannot_change_a_module_spec_space_type_or_function(
    name: str, value: Any
) -> None:
    before = dict(vars(value))
    parts = {"entry_point": {"is": "plain", "value": "os:system"}}
    forged = {"is": "object", "parts": {name: {"is": "object", "parts": parts}}}
    with pytest.raises(env_snapshot.MisfitError):
        env_snapshot.restore(Thing(**{name: value}), forged)
    assert dict(vars(value)) == before


@pytest.mark.parametrize("value", [print, Thing(), torch.nn.Linear, [1], torch.zeros(1)])
def test_a_forged_plain_value_is_rejected(value: Any) -> None:
    forged = {"is": "object", "parts": {"step": {"is": "plain", "value": value}}}
    restored = Thing(step=1)
    with pytest.raises(env_snapshot.MisfitError):
        env_snapshot.restore(restored, forged)
    assert restored.step == 1
