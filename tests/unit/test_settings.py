"""Tests of settings given from Python: validation, error messages and custom networks."""

import pathlib
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from hogwild_rl import a2c, a3c
from hogwild_rl.errors import UserError


@pytest.mark.parametrize("config", [a3c.Config, a2c.Config])
@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("clip_rewards", "Sign", "none, sign, or a number"),
        ("precision", "bf16", "float32, bfloat16"),
        ("lr_schedule", "cosine", "linear, constant"),
        ("activation", "gelu", "tanh, relu"),
    ],
)
def test_an_invalid_choice_is_rejected(config: Any, name: str, value: str, choices: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be one of {choices}, got '{value}'$"):
        config(**{name: value})


def test_invalid_choices_of_a_single_algorithm_are_rejected() -> None:
    with pytest.raises(UserError, match=r"^device must be one of auto, cpu, cuda, got 'gpu'$"):
        a2c.Config(device="gpu")
    with pytest.raises(UserError, match=r"^vectorization must be one of .*, got 'async'$"):
        a3c.Config(vectorization="async")


class BatchNormNetwork(nn.Sequential):
    """Network with buffers, which no gradient updates."""

    def __init__(self, space: Any) -> None:
        super().__init__(nn.Flatten(0, 1), nn.BatchNorm1d(space.shape[0]), nn.Unflatten(0, (1, -1)))


class SequenceNetwork(nn.Module):
    """Network that accepts observations [T, B, O] only."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(space.shape[0], 8)

    def forward(self, rows: Tensor) -> Tensor:
        """Returns features [T, B, 8]."""
        T, B, _ = rows.shape
        features: Tensor = self.layer(rows.flatten(0, 1)).unflatten(0, (T, B))
        assert features.shape == (T, B, 8)
        return features


def test_a_network_with_buffers_is_rejected(tmp_path: pathlib.Path) -> None:
    config = a2c.Config(network=BatchNormNetwork, run_dir=str(tmp_path / "run"), quiet=True)
    with pytest.raises(UserError, match=r"has buffers \(.*running_mean.*use LayerNorm"):
        a2c.train(config)
    assert not (tmp_path / "run").exists()


def test_a_custom_network_gets_time_and_batch_axes(tmp_path: pathlib.Path) -> None:
    settings: dict[str, Any] = {"network": SequenceNetwork, "total_timesteps": 2_000, "quiet": True}
    agent = a2c.train(a2c.Config(run_dir=str(tmp_path / "run"), num_envs=4, **settings))
    assert agent.evaluate(2).min() >= 1


def test_a_run_with_hidden_sizes_as_a_list_is_resumed(tmp_path: pathlib.Path) -> None:
    run = str(tmp_path / "run")
    settings: dict[str, Any] = {"quiet": True, "num_envs": 4}
    a2c.train(a2c.Config(run_dir=run, hidden=[8], total_timesteps=500, **settings))
    agent = a2c.train(a2c.Config(resume=run, total_timesteps=1_000, quiet=True))
    assert agent.checkpoint.counters.steps >= 1_000
    with pytest.raises(UserError, match=r"hidden of run .* is \(8,\), got \(9,\)"):
        a2c.train(a2c.Config(resume=run, hidden=(9,), total_timesteps=2_000, quiet=True))


class Transposed(gymnasium.Env[Any, Any]):
    """Random images, transposed to channels first without a copy."""

    observation_space = spaces.Box(0, 255, (3, 24, 24), np.uint8)
    action_space = spaces.Discrete(2)

    def _observe(self) -> Any:
        return self.np_random.integers(0, 256, (24, 24, 3), np.uint8).transpose(2, 0, 1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._remaining = 5
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._remaining -= 1
        return self._observe(), 1.0, False, self._remaining == 0, {}


def test_non_contiguous_images_work_in_training_and_evaluation(
    tmp_path: pathlib.Path,
) -> None:
    run = str(tmp_path / "run")
    agent = a2c.train(a2c.Config(env=Transposed, run_dir=run, total_timesteps=300, quiet=True))
    assert agent.evaluate(3).tolist() == [5.0] * 3
    image = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3).transpose(2, 0, 1)
    with torch.inference_mode():
        actions = agent.model.policy(torch.from_numpy(image.copy())[None])[0].mode()
    assert agent.act(image) == actions[0]
