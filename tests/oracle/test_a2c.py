"""Tests that A2C and A3C with one worker are bit-identical."""

import csv
import pathlib
from typing import Any

import pytest
import torch

from hogwild_rl import a2c, a3c

SETTINGS: dict[str, Any] = {
    "env": "CartPole-v1",
    "n_steps": 8,
    "learning_rate": 3e-3,
    "ent_coef": 0.01,
    "seed": 5,
    "quiet": True,
}


def results_of(agent: Any) -> tuple[dict[str, Any], dict[str, Any], list[int], list[str]]:
    """Returns parameters, statistics, counts, and mean return and length of the last episodes."""
    checkpoint = agent.checkpoint
    with (agent.run_dir / "progress.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    counters = checkpoint.counters
    counts = [counters.steps, counters.updates, counters.episodes]
    episodes = [last["return_mean"], last["length_mean"]]
    return checkpoint.parameters, checkpoint.optimizer["state"][0], counts, episodes


def assert_equal(found: Any, expected: Any) -> None:
    for tensors, others in zip(found[:2], expected[:2], strict=True):
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, others[name]), name
    assert found[2:] == expected[2:]


@pytest.mark.parametrize(("num_envs", "vectorization"), [(3, "sync"), (8, "native")])
def test_a3c_with_one_worker_is_bit_identical_to_a2c(
    tmp_path: pathlib.Path, num_envs: int, vectorization: str
) -> None:
    steps = 55 * num_envs * 8  # at least 50 updates: some steps only reset
    asynchronous = a3c.train(
        a3c.Config(
            workers=1,
            envs_per_worker=num_envs,
            total_timesteps=steps,
            run_dir=str(tmp_path / "a3c"),
            **SETTINGS,
        )
    )
    synchronous = a2c.train(
        a2c.Config(
            num_envs=num_envs,
            vectorization=vectorization,
            total_timesteps=steps,
            run_dir=str(tmp_path / "a2c"),
            **SETTINGS,
        )
    )
    assert asynchronous.checkpoint.counters.updates >= 50
    assert asynchronous.checkpoint.counters.episodes >= 30
    assert_equal(results_of(asynchronous), results_of(synchronous))


def test_a2c_is_reproducible_and_independent_of_the_backend(tmp_path: pathlib.Path) -> None:
    runs = [
        results_of(
            a2c.train(
                a2c.Config(
                    num_envs=4,
                    vectorization=backend,
                    total_timesteps=2000,
                    run_dir=str(tmp_path / str(index)),
                    **SETTINGS,
                )
            )
        )
        for index, backend in enumerate(["sync", "sync", "async"])
    ]
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])
