"""Time of the loss and its gradient, and of acting: in closed form and by torch.

    python benchmarks/closed_form.py

One thread, two layers of 64 units for policy and value each, CartPole-v1's spaces. "numpy" and
"torch" compute the matrix products of the closed form with that library; "autograd" is the loss in
torch with its backward pass, "model" the network's own `act`. The variants are timed in turn, and
medians are reported. Above `_NUMPY_UP_TO` in learn/closed_form.py torch's products are faster.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy is imported

import machine
import numpy as np
import torch
import tyro
from gymnasium import spaces
from update_cost import microseconds

from hogwild_rl import a3c
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import closed_form, losses
from hogwild_rl.models.actor_critic import ActorCritic, Architecture

ROLLOUTS = ((5, 1), (20, 1), (5, 16), (20, 16), (20, 64), (20, 256))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    rounds: int = 200
    """Number of measurements of each variant."""


def random_rollout(T: int, B: int) -> Rollout:
    """Rollout without ends of episodes."""
    no = torch.zeros(T, B, dtype=torch.bool)
    observations, actions = torch.randn(T + 1, B, 4), torch.randint(2, (T, B))
    return Rollout(observations, torch.zeros(2, B, 0), actions, torch.randn(T, B), no, no, ~no)


def measure(T: int, B: int, rounds: int) -> dict[str, float]:
    """Median times for a rollout of T steps of B environments, in microseconds."""
    model = ActorCritic(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), Architecture())
    shared, rollout, settings = SharedModel(model), random_rollout(T, B), a3c.Config(ent_coef=0.01)
    closed = closed_form.ClosedForm(model, shared.gradient.flat)
    row, generator = rollout.observations[0], np.random.default_rng(0)

    def gradient(numpy_up_to: float) -> None:
        closed_form._NUMPY_UP_TO = numpy_up_to  # type: ignore[assignment]
        closed.gradient(losses.actor_critic_loss, rollout, settings)

    def autograd() -> None:
        shared.gradient(losses.actor_critic_loss(model, rollout, settings).total)

    def model_act() -> None:
        with torch.inference_mode():
            model.act(row)

    variants: dict[str, Callable[[], Any]] = {
        "gradient, numpy": functools.partial(gradient, float("inf")),
        "gradient, torch": functools.partial(gradient, 0),
        "gradient, autograd": autograd,
        "act, numpy": lambda: closed.act(row.numpy(), generator=generator),
        "act, model": model_act,
    }
    return microseconds(variants, rounds)


def main() -> None:
    """Measures all sizes; prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    print(f"{machine.describe()}, one thread; microseconds")
    rows = []
    for T, B in ROLLOUTS:
        medians = {name: round(us, 1) for name, us in measure(T, B, config.rounds).items()}
        products = T * B * 64 * 64
        rows.append({"T": T, "B": B, "largest product": products, **medians})
        print(f"T {T:2}, B {B:3}:", ", ".join(f"{name} {us:,.0f}" for name, us in medians.items()))
    print(f"written: {machine.write_csv('closed_form', rows)}")


if __name__ == "__main__":
    main()
