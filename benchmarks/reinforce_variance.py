"""Variance of REINFORCE's policy gradient, by return and baseline.

    python benchmarks/reinforce_variance.py

The variance is the trace of the estimate's covariance under a fixed policy, γ = 1. The squared norm
of the mean is reported too; sampled, it is the product of the means of two halves. In a small MDP
with 28 possible episodes (tests/mdp.py), an estimate uses two episodes, over all pairs and sampled.
On CartPole-v1, after a short training, it uses 16, with the value function as trained or fitted.
"""

import dataclasses
import functools
import itertools
import pathlib
import sys
import tempfile
from typing import Any

import machine
import torch
import tyro
from torch import Tensor

sys.path.append(str(pathlib.Path(__file__).parents[1]))

from hogwild_rl import reinforce
from hogwild_rl.collect.episodes import EpisodeCollector
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs import vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.learn import losses, returns
from hogwild_rl.models.actor_critic import ActorCritic
from tests import mdp

VARIANTS = list(itertools.product(("total", "to-go"), ("none", "mean", "value")))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    estimates: int = 500
    """Number of sampled gradient estimates per environment."""
    trained_for: int = 30_000
    """Training steps of the policy on CartPole-v1."""


def estimates(model: ActorCritic, batches: list[Rollout], credit: Any, baseline: Any) -> Tensor:
    """Policy gradients of all batches, [N, P]."""
    config = reinforce.Config(returns=credit, baseline=baseline, gamma=1, ent_coef=0, vf_coef=0)
    policy = [*model.policy_body.parameters(), *model.policy_head.parameters()]
    objectives = (reinforce.episode_loss(model, batch, config).total for batch in batches)
    gradients = (torch.autograd.grad(loss, policy) for loss in objectives)
    return -torch.stack([torch.cat([g.double().flatten() for g in parts]) for parts in gradients])


def sample_batches(env: Any, model: ActorCritic, size: int, count: int, seed: int) -> list[Rollout]:
    """Samples `count` batches of `size` episodes."""
    backend = vectorize.choose(env, "auto", size, cores=1)
    envs = vectorize.make_envs(env, backend, size, cores=1)
    spaces = envs.single_observation_space, envs.single_action_space
    env_codec = EnvCodec(ObservationCodec.of(spaces[0]), ActionCodec.of(spaces[1]))
    act = functools.partial(model.act, generator=torch.Generator().manual_seed(seed))
    collector = EpisodeCollector(envs, env_codec, seed, lambda *_: None)
    return [collector.collect(act) for _ in range(count)]


def fit(model: ActorCritic, batches: list[Rollout], steps: int) -> None:
    """Fits only the value function to the returns-to-go."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)  # the policy gets no gradient
    for batch in itertools.islice(itertools.cycle(batches), steps):
        error = returns.returns_to_go(batch.rewards, 1.0) - model(batch.observations)[1][:-1]
        optimizer.zero_grad()
        losses.mean(error.square(), batch.valid).backward()
        optimizer.step()


def exact(variant: tuple[str, str]) -> tuple[float, float]:
    """Exact trace of the covariance and squared norm of the mean, in the small MDP."""
    model, every = mdp.model(), mdp.episodes()
    policy = mdp.policy_of(*mdp.parameters_of(model))
    P = torch.tensor([mdp.probability(each, policy) for each in every], dtype=torch.float64)
    pairs = [mdp.rollout(pair) for pair in itertools.product(every, repeat=2)]
    weights, gradients = torch.outer(P, P).flatten(), estimates(model, pairs, *variant)
    mean = weights @ gradients
    return float((weights @ (gradients - mean).square()).sum()), float(mean.square().sum())


def main() -> None:
    """Measures the variances; prints and writes the table."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    print(machine.describe())
    columns, rows = ("env", "returns", "baseline", "how", "variance", "squared_mean"), []

    def record(*values: str | float) -> None:
        row = [f"{value:.4g}" if isinstance(value, float) else value for value in values]
        rows.append(dict(zip(columns, row, strict=True)))
        print("".join(f"{word:<13}" for word in row))

    def sample(env: str, source: Any, model: ActorCritic, size: int, how: str = "sampled") -> None:
        batches = sample_batches(source, model, size, config.estimates, seed=0)
        for variant in VARIANTS if how == "sampled" else [("to-go", "value")]:
            gradients = estimates(model, batches, *variant)
            squared = float(gradients[::2].mean(0) @ gradients[1::2].mean(0))
            record(env, *variant, how, float(gradients.var(0).sum()), squared)

    for variant in VARIANTS:
        record("small", *variant, "exact", *exact(variant))
    sample("small", mdp.Small, mdp.model(dtype=torch.float32), 2)
    with tempfile.TemporaryDirectory() as folder:
        training: Any = {"total_timesteps": config.trained_for, "run_dir": f"{folder}/run"}
        learner = reinforce.Config(**training, baseline="value", gamma=1, quiet=True)
        model = reinforce.train(learner).model
    sample("CartPole-v1", "CartPole-v1", model.requires_grad_(True), 16)
    fit(model, sample_batches("CartPole-v1", model, 16, 30, seed=1), 500)
    sample("CartPole-v1", "CartPole-v1", model, 16, "fitted")
    print(f"written: {machine.write_csv('reinforce_variance', rows)}")


if __name__ == "__main__":
    main()
