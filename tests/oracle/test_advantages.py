"""Tests of generalized advantages against explicit sums in float64 and known fixed points."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hogwild_rl.learn.returns import generalized_advantages

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Stream:
    """Steps of B environments, [T, B]; `values` has one more row."""

    rewards: Floats
    values: Floats
    terminated: Flags
    truncated: Flags
    valid: Flags

    def cut(self, start: int, stop: int) -> "Stream":
        """Returns the rollout of the steps start..stop-1."""
        return Stream(
            self.rewards[start:stop],
            self.values[start : stop + 1],
            self.terminated[start:stop],
            self.truncated[start:stop],
            self.valid[start:stop],
        )

    def advantages(self, gamma: float, gae_lambda: float) -> Floats:
        """Computes the advantages with the package."""
        arrays = (self.rewards, self.values, self.terminated, self.truncated, self.valid)
        found: Floats = generalized_advantages(
            *(torch.from_numpy(array.copy()) for array in arrays),
            gamma=gamma,
            gae_lambda=gae_lambda,
        ).numpy()
        return found


def random_stream(rng: np.random.Generator, T: int, B: int, ends: tuple[float, float]) -> Stream:
    """Returns random steps; the step after an end is invalid, has reward 0 and does not end."""
    rewards, values = rng.normal(size=(T, B)), rng.normal(size=(T + 1, B))
    terminated, truncated = (rng.random((T, B)) < share for share in ends)
    valid = np.ones((T, B), dtype=np.bool_)
    for t in range(1, T):
        valid[t] = ~(terminated[t - 1] | truncated[t - 1])
        rewards[t] *= valid[t]
        terminated[t] &= valid[t]
        truncated[t] &= valid[t]
    return Stream(rewards, values, terminated, truncated, valid)


def episodes_of(length: int, T: int, *, terminated: bool) -> Stream:
    """Returns steps of one environment with reward 1, values 0 and episodes of `length` steps."""
    position = np.arange(T)[:, None] % (length + 1)  # `length` is the step that resets
    ended, valid = position == length - 1, position != length
    never = np.zeros_like(ended)
    return Stream(
        rewards=valid.astype(np.float64),
        values=np.zeros((T + 1, 1)),
        terminated=ended if terminated else never,
        truncated=never if terminated else ended,
        valid=valid,
    )


def td_error(s: Stream, t: int, b: int, gamma: float) -> float:
    """δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)."""
    following = 0.0 if s.terminated[t, b] else gamma * s.values[t + 1, b]
    return float(s.rewards[t, b] + following - s.values[t, b])


def explicit_sums(s: Stream, gamma: float, gae_lambda: float) -> Floats:
    """Σ (γλ)^i δ_{t+i}, summed forward for each valid t until the episode or the rollout ends."""
    T, B = s.rewards.shape
    advantages = np.zeros((T, B))
    for t, b in zip(*np.nonzero(s.valid), strict=True):
        for k in range(t, T):
            advantages[t, b] += (gamma * gae_lambda) ** (k - t) * td_error(s, k, b, gamma)
            if s.terminated[k, b] or s.truncated[k, b]:
                break
    return advantages


def n_step_returns(s: Stream, t: int, b: int, gamma: float) -> float:
    """r_t + γ r_{t+1} + … + γ^n V(s_{t+n}), with V = 0 after a terminal step."""
    total, discount = 0.0, 1.0
    for k in range(t, len(s.rewards)):
        total += discount * float(s.rewards[k, b])
        discount *= gamma
        if s.terminated[k, b]:
            return total
        if s.truncated[k, b]:
            return total + discount * float(s.values[k + 1, b])
    return total + discount * float(s.values[-1, b])


def assert_close(found: Floats, expected: Floats) -> None:
    """Asserts equality to 1e-6; NaN is not equal to NaN."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6, equal_nan=False)


def test_advantages_equal_explicit_sums() -> None:
    """GAE equals the forward sum of δ in 200 rollouts with random ends."""
    rng = np.random.default_rng(0)
    seen = {"terminated": 0, "truncated": 0, "both": 0, "ends at the last step": 0}
    for _ in range(200):
        T, B = int(rng.integers(1, 13)), int(rng.integers(1, 5))
        gamma, gae_lambda = rng.uniform(0.5, 1, size=2)
        s = random_stream(rng, T, B, (rng.uniform(0, 0.4), rng.uniform(0, 0.4)))
        assert_close(s.advantages(gamma, gae_lambda), explicit_sums(s, gamma, gae_lambda))
        seen["terminated"] += int(s.terminated.sum())
        seen["truncated"] += int(s.truncated.sum())
        seen["both"] += int((s.terminated & s.truncated).sum())
        seen["ends at the last step"] += int((s.terminated | s.truncated)[-1].sum())
    assert min(seen.values()) > 20


def test_advantages_of_a_stream_cut_into_rollouts_equal_explicit_sums() -> None:
    """If a rollout starts with an invalid step, its advantage is 0 and affects no other."""
    rng, resetting_first_rows = np.random.default_rng(1), 0
    for _ in range(50):
        T, B = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        stream = random_stream(rng, 4 * T, B, (0.2, 0.2))
        for start in range(0, 4 * T, T):
            s = stream.cut(start, start + T)
            assert_close(s.advantages(0.97, 0.9), explicit_sums(s, 0.97, 0.9))
            resetting_first_rows += int((~s.valid[0]).sum())
    assert resetting_first_rows > 20


def test_lambda_one_is_the_n_step_return_minus_the_value() -> None:
    """λ = 1: discounted rewards, plus the bootstrap value if not terminated, minus V(s_t)."""
    rng = np.random.default_rng(2)
    for _ in range(30):
        s = random_stream(rng, 9, 3, (0.15, 0.15))
        found = s.advantages(0.9, 1.0)
        for t, b in zip(*np.nonzero(s.valid), strict=True):
            expected = n_step_returns(s, t, b, 0.9) - s.values[t, b]
            assert found[t, b] == pytest.approx(expected, abs=1e-6)


def test_lambda_zero_is_the_td_error() -> None:
    """λ = 0: the one-step TD error."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        s = random_stream(rng, 9, 3, (0.15, 0.15))
        found = s.advantages(0.9, 0.0)
        for t, b in zip(*np.nonzero(s.valid), strict=True):
            assert found[t, b] == pytest.approx(td_error(s, t, b, 0.9), abs=1e-6)


def test_invalid_entries_are_exactly_zero() -> None:
    """A step that only resets has the advantage 0 for any value."""
    s = random_stream(np.random.default_rng(4), 40, 5, (0.2, 0.2))
    found = s.advantages(0.99, 0.95)
    assert (~s.valid).sum() > 20
    assert (found[~s.valid] == 0).all()


@pytest.mark.parametrize("end", [2, 5])
def test_the_value_of_a_terminal_state_is_not_used(end: int) -> None:
    """V(terminal) = NaN has no effect, in the middle of a rollout and at its last step."""
    s = random_stream(np.random.default_rng(5), 6, 1, (0.0, 0.0))
    s.terminated[end] = True
    s.valid[end + 1 :][:1] = False
    s.rewards[end + 1 :][:1] = 0
    expected = s.advantages(0.9, 0.8)
    s.values[end + 1] = np.nan
    assert_close(s.advantages(0.9, 0.8), expected)


def test_the_value_after_a_truncated_step_is_used() -> None:
    """A step truncated by a time limit bootstraps from the next row."""
    s = random_stream(np.random.default_rng(6), 6, 1, (0.0, 0.0))
    s.truncated[2], s.valid[3], s.rewards[3] = True, False, 0
    before = s.advantages(0.9, 0.8)
    s.values[3] += 10
    change = s.advantages(0.9, 0.8) - before
    assert_close(change[:, 0], np.array([9 * 0.72**2, 9 * 0.72, 9, 0, 0, 0]))


def test_rewards_after_an_end_do_not_affect_steps_before_it() -> None:
    """This holds for terminated and truncated steps."""
    for name in ("terminated", "truncated"):
        s = random_stream(np.random.default_rng(7), 8, 1, (0.0, 0.0))
        getattr(s, name)[3] = True
        s.valid[4], s.rewards[4] = False, 0
        before = s.advantages(0.9, 0.8)
        s.rewards[5:] += 100
        after = s.advantages(0.9, 0.8)
        assert (after[:5] == before[:5]).all()
        assert (after[5:] > before[5:]).all()


@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_an_end_stops_the_sum_even_if_the_next_step_is_valid(name: str) -> None:
    """The factor (1 − ended_t) does not depend on `valid`."""
    s = random_stream(np.random.default_rng(9), 6, 2, (0.0, 0.0))
    getattr(s, name)[2] = True
    assert s.valid.all()
    assert_close(s.advantages(0.9, 0.8), explicit_sums(s, 0.9, 0.8))


def test_arguments_are_not_changed() -> None:
    """The function is pure: it writes to none of its tensors."""
    s = random_stream(np.random.default_rng(8), 6, 2, (0.3, 0.3))
    arrays = (s.rewards, s.values, s.terminated, s.truncated, s.valid)
    tensors = [torch.from_numpy(array.copy()) for array in arrays]
    generalized_advantages(*tensors, gamma=0.9, gae_lambda=0.9)
    assert all((t.numpy() == a).all() for t, a in zip(tensors, arrays, strict=True))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("values", (4, 2)),
        ("values", (5, 1)),
        ("values", (5, 2, 1)),
        ("terminated", (4,)),
        ("terminated", (4, 1)),
        ("truncated", (2, 4)),
        ("truncated", (5, 2)),
        ("valid", (4, 2, 1)),
        ("rewards", (4, 3)),
        ("rewards", (4, 2, 1)),
        ("rewards", (4,)),
    ],
)
def test_shapes_that_do_not_agree_are_rejected(name: str, shape: tuple[int, ...]) -> None:
    """Arguments are not broadcast: a wrong shape raises ValueError."""
    arguments: dict[str, Any] = {
        "rewards": torch.zeros(4, 2),
        "values": torch.zeros(5, 2),
        "terminated": torch.zeros(4, 2, dtype=torch.bool),
        "truncated": torch.zeros(4, 2, dtype=torch.bool),
        "valid": torch.ones(4, 2, dtype=torch.bool),
    }
    assert generalized_advantages(**arguments, gamma=0.9, gae_lambda=0.9).shape == (4, 2)
    arguments[name] = torch.zeros(shape, dtype=arguments[name].dtype)
    with pytest.raises(ValueError, match=r"\w"):
        generalized_advantages(**arguments, gamma=0.9, gae_lambda=0.9)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("start", [0.0, 100.0])
def test_a_time_limit_does_not_lower_the_value(gae_lambda: float, start: float) -> None:
    """Reward 1, truncated every 10 steps: value iteration converges to 1 / (1 − γ)."""
    gamma, stream, value = 0.9, episodes_of(10, 44, terminated=False), start
    assert stream.truncated.sum() == 4
    for _ in range(300):
        s = dataclasses.replace(stream, values=np.full_like(stream.values, value))
        targets = s.advantages(gamma, gae_lambda) + s.values[:-1]
        value = float(targets[s.valid].mean())
    assert value == pytest.approx(1 / (1 - gamma), rel=1e-5)
    assert targets[s.valid] == pytest.approx(1 / (1 - gamma), rel=1e-5)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
def test_a_termination_bounds_the_value(gae_lambda: float) -> None:
    """Reward 1, terminated after 10: V = (1 − γ^k) / (1 − γ) with k steps to go."""
    gamma, length, stream = 0.9, 10, episodes_of(10, 44, terminated=True)
    assert stream.terminated.sum() == 4
    to_go = length - np.arange(len(stream.values)) % (length + 1)
    values = np.full(length + 1, 50.0)  # by steps to go; that of the terminal state stays 50
    for _ in range(length):
        s = dataclasses.replace(stream, values=values[to_go][:, None])
        targets = (s.advantages(gamma, gae_lambda) + s.values[:-1])[:, 0]
        for k in range(1, length + 1):
            values[k] = targets[to_go[:-1] == k].mean()
    steps = np.arange(1, length + 1)
    assert_close(values[1:], (1 - gamma**steps) / (1 - gamma))
