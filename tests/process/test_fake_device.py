"""A2C, DDPG and TD3 with the learner's tensors on a fake device: what mixes devices, raises."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]
A2C = {"num_envs": 4, "total_timesteps": 300}
REPLAY = {"total_timesteps": 150, "learning_starts": 100, "batch_size": 16, "buffer_size": 1_000}
# By name: algorithm, settings, and how many graphs are captured where that is asked for.
RUNS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vectors": ("a2c", {**A2C, "env": "CartPole-v1"}, 3),
    "two groups, LSTM, normalizers": (
        "a2c",
        {
            **A2C,
            "env": "CartPole-v1",
            "env_groups": 2,
            "lstm": 8,
            "normalize_observations": True,
            "normalize_rewards": True,
        },
        3,
    ),
    "continuous": ("a2c", {**A2C, "env": "Pendulum-v1", "state_dependent_std": True}, 3),
    "small images": ("a2c", {**A2C, "env": "tests.envs:Pictures-v0"}, 3),
    "atari": (
        "a2c",
        {**A2C, "env": "PongNoFrameskip-v4", "total_timesteps": 60, "n_steps": 5},
        3,
    ),
    "numbers that are not finite": ("a2c", {**A2C, "env": "tests.envs:FaultyNan-v0"}, 3),
    "ddpg": ("ddpg", REPLAY, 1),
    "td3": ("td3", REPLAY, 2),
}


def train(algorithm: str, settings: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "tests.fake_device", algorithm, json.dumps(settings))
    return subprocess.run(
        command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=100
    )


QUICK = ("vectors", "two groups, LSTM, normalizers", "atari", "td3")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.long) for n in RUNS]
)
def test_training_on_a_device_mixes_no_devices_and_captures_its_updates(name) -> None:
    """The recorder runs everything once before it captures, so this covers training without it."""
    algorithm, settings, graphs = RUNS[name]
    done = train(algorithm, {**settings, "compile": True})
    assert done.returncode == 0, done.stderr[-3000:]
    steps, updates, captured = json.loads(done.stdout)
    assert steps >= settings["total_timesteps"]
    assert updates > 0
    assert captured == graphs


@pytest.mark.long
@pytest.mark.parametrize(
    ("network", "operation"), [("reading", "item"), ("masking", "__getitem__")]
)
def test_a_network_that_cannot_be_captured_is_named(network, operation) -> None:
    settings = {**A2C, "env": "CartPole-v1", "network": network}
    done = train("a2c", {**settings, "compile": True})
    assert done.returncode == 1
    assert f"UserError: network tests.fake_device.{network.title()} cannot be" in (
        done.stderr.replace("__main__", "tests.fake_device")
    )
    assert operation in done.stderr
    assert "set compile to False" in done.stderr
    assert train("a2c", {**settings, "compile": False}).returncode == 0
