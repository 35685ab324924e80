"""Tests of staleness corrections against their formulas, and of delayed steps."""

import math
import pathlib
import timeit
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hogwild_rl
from hogwild_rl import a3c
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import staleness
from hogwild_rl.hogwild.optimizers import SharedAdam, SharedOptimizer, SharedRMSprop, SharedSGD
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.hogwild.staleness import StaleSteps

P = 5


class Problem:
    """Shared parameters with an optimizer, and the steps of one worker."""

    def __init__(self, make: Any = SharedRMSprop, **settings: Any) -> None:
        module = nn.Linear(P, 1, bias=False)
        module.weight.detach().copy_(torch.linspace(1, 2, P))
        self.model = SharedModel(module)
        self.optimizer: SharedOptimizer = make(self.model, 0.1)
        self.pulled, self.updates, self.dropped = self.model.flat.clone(), 0, 0
        self.steps = StaleSteps(
            self.optimizer, self.pulled, lambda: self.updates, self._drop, **settings
        )

    def _drop(self) -> None:
        self.dropped += 1

    def apply(self, gradient: Tensor, delay: int = 0) -> bool:
        """Applies a gradient whose parameters were pulled `delay` updates ago."""
        applied = self.steps.apply(gradient, self.updates - delay) is not None
        self.updates += applied
        return applied


def updates_by_staleness(folder: pathlib.Path) -> dict[int, int]:
    """Number of updates by staleness of a run, from staleness.csv."""
    rows = [row.split(",") for row in (folder / "staleness.csv").read_text().splitlines()[1:]]
    return {int(row[0]): int(row[1]) for row in rows}


def gradients(count: int, seed: int = 0) -> list[Tensor]:
    """Random gradients."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.normal(0, 1, P).astype(np.float32)) for _ in range(count)]


def test_compensation_equals_its_formula() -> None:
    gradient, moved = gradients(2)
    mean_square = torch.rand(P)
    found = staleness.compensated(gradient, moved, mean_square, 2.0, 0.1)
    d, m, g = gradient.double(), moved.double(), mean_square.double()
    expected = d + 2 * d * d / (g + 0.1).sqrt() * m
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [SharedRMSprop, SharedAdam])
def test_compensated_steps_use_the_parameters_of_the_pull(make: Any) -> None:
    problem, plain = Problem(make, correction="compensate", strength=1.5), Problem(make)
    first, second = gradients(2)
    for each in (problem, plain):
        each.apply(first)
    state = problem.optimizer.state[problem.optimizer.parameter]
    mean_square = state["square_avg" if make is SharedRMSprop else "exp_avg_sq"].clone()
    moved = problem.model.parameter.detach() - problem.pulled
    assert moved.abs().min() > 0
    eps = problem.optimizer.param_groups[0]["eps"]
    problem.apply(second, delay=1)
    plain.apply(staleness.compensated(second, moved, mean_square, 1.5, eps), delay=1)
    torch.testing.assert_close(problem.model.flat, plain.model.flat)


@pytest.mark.parametrize(
    ("correction", "factors"),
    [
        ("ignore", {0: 1, 3: 1, 100: 1}),
        ("delay-adaptive", {0: 1, 4: 1, 8: 0.5, 40: 0.1}),
        ("inverse", {0: 1, 1: 0.5, 3: 0.25}),
    ],
)
def test_factors_scale_the_learning_rate_of_one_step(correction: Any, factors: Any) -> None:
    for delay, factor in factors.items():
        problem = Problem(SharedSGD, correction=correction, workers=4)
        problem.updates, before = 100, problem.model.flat.clone()
        (gradient,) = gradients(1)
        assert problem.apply(gradient, delay)
        torch.testing.assert_close(problem.model.flat, before - 0.1 * factor * gradient)
        assert problem.optimizer.learning_rate == 0.1


def test_gradients_with_a_delay_above_the_bound_are_dropped() -> None:
    problem = Problem(SharedSGD, correction="drop", bound=3)
    problem.updates = 10
    applied = [
        problem.apply(gradient, delay)
        for gradient, delay in zip(gradients(4), (0, 3, 4, 9), strict=True)
    ]
    assert applied == [True, True, False, False]
    assert problem.dropped == 2
    expected = torch.linspace(1, 2, P) - 0.1 * sum(gradients(4)[:2])
    torch.testing.assert_close(problem.model.flat, expected)


def test_accumulated_gradients_are_one_step_with_their_mean() -> None:
    problem = Problem(SharedSGD, correction="accumulate", count=3)
    applied = [problem.apply(gradient) for gradient in gradients(7)]
    assert applied == [False, False, True] * 2 + [False]
    expected = torch.linspace(1, 2, P) - 0.1 / 3 * sum(gradients(6))
    torch.testing.assert_close(problem.model.flat, expected)


@pytest.mark.parametrize("delay", [1, 4])
@pytest.mark.parametrize("correction", ["ignore", "compensate", "inverse"])
def test_delayed_steps_equal_a_sequential_simulation(correction: Any, delay: int) -> None:
    """Bit for bit, for the gradient of a quartic function."""
    problem = Problem(correction=correction, artificial_delay=delay)
    other = Problem()
    waiting: deque[tuple[Tensor, Tensor]] = deque()
    for _ in range(30):
        problem.pulled.copy_(problem.model.flat)
        problem.apply(problem.pulled**3, delay=0)
        theta = other.model.flat.clone()
        waiting.append((theta, theta**3))
        if len(waiting) > delay:
            pulled, gradient = waiting.popleft()
            if correction == "compensate":
                mean_square = other.optimizer.state[other.optimizer.parameter]["square_avg"]
                moved = theta - pulled
                gradient = staleness.compensated(gradient, moved, mean_square, 2.0, 0.1)
            taken = min(delay, other.updates)
            other.optimizer.learning_rate = 0.1 / (1 + taken) if correction == "inverse" else 0.1
            other.optimizer.apply(gradient)
            other.updates += 1
    assert torch.equal(problem.model.flat, other.model.flat)


@pytest.mark.parametrize("correction", ["compensate", "delay-adaptive", "inverse", "drop"])
def test_a_nonfinite_difference_does_not_outlive_its_step(correction: Any) -> None:
    """The statistics stay finite for finite gradients, also after large moves."""
    problem = Problem(correction=correction, bound=10)
    for gradient in gradients(50):
        problem.apply(gradient * 1e3, delay=5)
        problem.pulled.copy_(problem.model.flat)
    assert bool(problem.model.flat.isfinite().all())


def test_corrections_are_cheap() -> None:
    """Generous bounds, as other processes may run: 15 µs for 5,000 parameters when idle."""
    gradient, moved, mean_square = torch.randn(3, 5_000).abs().unbind()

    def seconds(function: Any) -> float:
        return min(timeit.repeat(function, number=200, repeat=5)) / 200

    assert seconds(lambda: staleness.compensated(gradient, moved, mean_square, 2.0, 0.1)) < 150e-6
    assert seconds(lambda: staleness.delay_adaptive(5, 2)) < 5e-6
    assert seconds(lambda: staleness.inverse(5)) < 5e-6


@pytest.mark.parametrize("value", ["compensate", "delay-adaptive", "inverse", "drop", "accumulate"])
def test_a3c_trains_with_every_correction(value: Any, tmp_path: pathlib.Path) -> None:
    config = a3c.Config(
        env="CartPole-v1",
        workers=2,
        envs_per_worker=2,
        total_timesteps=6_000,
        staleness=value,
        staleness_bound=1,
        artificial_delay=2,
        quiet=True,
        run_dir=str(tmp_path / "run"),
    )
    a3c.train(config)
    counters = hogwild_rl.load(tmp_path / "run").checkpoint.counters
    assert counters.updates > 20
    assert (counters.dropped > 0) == (value == "drop")
    measured = updates_by_staleness(tmp_path / "run")
    if value == "accumulate":
        assert min(measured) >= 0
    elif value != "drop":
        assert sum(count for tau, count in measured.items() if tau >= 2) > counters.updates / 2


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(UserError, match="artificial_delay must be at least 0, got -1"):
        a3c.Config(artificial_delay=-1)
    with pytest.raises(UserError, match="compensate uses a running average"):
        a3c.Config(staleness="compensate", optimizer="sgd")
    with pytest.raises(UserError, match="staleness"):
        a3c.Config(staleness="guess")  # type: ignore[arg-type]
    assert math.isfinite(a3c.Config(staleness="inverse").staleness_lambda)
