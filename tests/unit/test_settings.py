"""Settings given from Python: what is refused before anything is made, and in which words."""

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
    ("name", "value", "words"),
    [
        ("clip_rewards", "Sign", "none, sign, or a number"),
        ("precision", "bf16", "float32, bfloat16"),
        ("lr_schedule", "cosine", "linear, constant"),
        ("activation", "gelu", "tanh, relu"),
    ],
)
def test_a_word_that_is_none_of_the_choices(config: Any, name: str, value: str, words: str) -> None:
    with pytest.raises(UserError, match=f"^{name} must be one of {words}, got '{value}'$"):
        config(**{name: value})


def test_words_of_one_algorithm_alone() -> None:
    with pytest.raises(UserError, match=r"^device must be one of auto, cpu, cuda, got 'gpu'$"):
        a2c.Config(device="gpu")
    with pytest.raises(UserError, match=r"^vectorization must be one of .*, got 'async'$"):
        a3c.Config(vectorization="async")


class Normalized(nn.Sequential):
    """Keeps statistics that no gradient changes."""

    def __init__(self, space: Any) -> None:
        super().__init__(nn.Flatten(0, 1), nn.BatchNorm1d(space.shape[0]), nn.Unflatten(0, (1, -1)))


class Both(nn.Module):
    """Takes rows [T, B, O] only, and says so where it is given others."""

    def __init__(self, space: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(space.shape[0], 8)

    def forward(self, rows: Tensor) -> Tensor:
        """[T, B, 8]."""
        T, B, _ = rows.shape
        features: Tensor = self.layer(rows.flatten(0, 1)).unflatten(0, (T, B))
        assert features.shape == (T, B, 8)
        return features


def test_a_network_with_statistics_of_its_own_is_refused(tmp_path: pathlib.Path) -> None:
    config = a2c.Config(network=Normalized, run_dir=str(tmp_path / "run"), quiet=True)
    with pytest.raises(UserError, match=r"has buffers \(.*running_mean.*use LayerNorm"):
        a2c.train(config)
    assert not (tmp_path / "run").exists()


def test_a_network_of_one_s_own_acts_on_rows_with_both_axes(tmp_path: pathlib.Path) -> None:
    settings: dict[str, Any] = {"network": Both, "total_timesteps": 2_000, "quiet": True}
    agent = a2c.train(a2c.Config(run_dir=str(tmp_path / "run"), num_envs=4, **settings))
    assert agent.evaluate(2).min() >= 1


def test_a_run_whose_sizes_were_given_as_a_list_is_resumed(tmp_path: pathlib.Path) -> None:
    run = str(tmp_path / "run")
    settings: dict[str, Any] = {"quiet": True, "num_envs": 4}
    a2c.train(a2c.Config(run_dir=run, hidden=[8], total_timesteps=500, **settings))
    agent = a2c.train(a2c.Config(resume=run, total_timesteps=1_000, quiet=True))
    assert agent.checkpoint.counters.steps >= 1_000
    with pytest.raises(UserError, match=r"hidden of run .* is \(8,\), got \(9,\)"):
        a2c.train(a2c.Config(resume=run, hidden=(9,), total_timesteps=2_000, quiet=True))


class Turned(gymnasium.Env[Any, Any]):
    """Shows pictures as a camera gives them, turned to channels first without a copy."""

    observation_space = spaces.Box(0, 255, (3, 24, 24), np.uint8)
    action_space = spaces.Discrete(2)

    def _observe(self) -> Any:
        return self.np_random.integers(0, 256, (24, 24, 3), np.uint8).transpose(2, 0, 1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 5
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        return self._observe(), 1.0, False, self._left == 0, {}


def test_pictures_that_are_views_are_seen_in_training_and_evaluation(
    tmp_path: pathlib.Path,
) -> None:
    run = str(tmp_path / "run")
    agent = a2c.train(a2c.Config(env=Turned, run_dir=run, total_timesteps=300, quiet=True))
    assert agent.evaluate(3).tolist() == [5.0] * 3
    picture = np.arange(24 * 24 * 3, dtype=np.uint8).reshape(24, 24, 3).transpose(2, 0, 1)
    with torch.inference_mode():
        seen = agent.model.policy(torch.from_numpy(picture.copy())[None])[0].mode()
    assert agent.act(picture) == seen[0]
