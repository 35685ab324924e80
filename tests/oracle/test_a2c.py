"""A2C and A3C with one worker are the same algorithm, to the last bit."""

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


def trained(agent: Any) -> tuple[dict[str, Any], dict[str, Any], list[int], list[str]]:
    """Parameters, statistics, counts, and mean return and length of the last 100 episodes."""
    checkpoint = agent.checkpoint
    with (agent.run_dir / "progress.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    counters = checkpoint.counters
    counts = [counters.steps, counters.updates, counters.episodes]
    episodes = [last["return_mean"], last["length_mean"]]
    return checkpoint.parameters, checkpoint.optimizer["state"][0], counts, episodes


def assert_equal(one: Any, other: Any) -> None:
    for mine, theirs in zip(one[:2], other[:2], strict=True):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert torch.equal(tensor, theirs[name]), name
    assert one[2:] == other[2:]


@pytest.mark.parametrize(("num_envs", "how"), [(3, "sync"), (8, "native")])
def test_one_worker_equals_a2c_bit_for_bit(tmp_path: pathlib.Path, num_envs: int, how: str) -> None:
    steps = 55 * num_envs * 8  # 50 updates at the least: some steps only reset
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
            vectorization=how,
            total_timesteps=steps,
            run_dir=str(tmp_path / "a2c"),
            **SETTINGS,
        )
    )
    assert asynchronous.checkpoint.counters.updates >= 50
    assert asynchronous.checkpoint.counters.episodes >= 30
    assert_equal(trained(asynchronous), trained(synchronous))


def test_a2c_gives_the_same_twice_and_on_every_backend(tmp_path: pathlib.Path) -> None:
    runs = [
        trained(
            a2c.train(
                a2c.Config(
                    num_envs=4,
                    vectorization=how,
                    total_timesteps=2000,
                    run_dir=str(tmp_path / str(index)),
                    **SETTINGS,
                )
            )
        )
        for index, how in enumerate(["sync", "sync", "async"])
    ]
    assert_equal(runs[0], runs[1])
    assert_equal(runs[0], runs[2])
