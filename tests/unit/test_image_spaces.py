"""Tests of images of every dtype and layout, and of small codes, from space to saved agent."""

import functools
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import Space, spaces
from gymnasium.wrappers import TransformAction
from torch import Tensor, nn

import hogwild_rl
from hogwild_rl import a2c, td3
from hogwild_rl.envs.codecs import ObservationCodec, batch_of_one
from hogwild_rl.models import encoders
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from tests import envs

ACTIONS = spaces.Discrete(3)
BYTES = spaces.Box(0, 255, (20, 24, 3), np.uint8)
CODES = spaces.Box(0, 255, (7, 7, 3), np.uint8)
RANGES: dict[str, tuple[int, int, Any]] = {
    "integers": (0, 255, np.int64),
    "floats in 0..255": (0, 255, np.float32),
    "floats in 0..1": (0, 1, np.float32),
    "doubles in -1..1": (-1, 1, np.float64),
}
LAYOUTS = {"hwc": (20, 24, 3), "chw": (3, 20, 24), "fhwc": (2, 20, 24, 3), "fchw": (2, 3, 20, 24)}


def model_of(space: Space[Any], network: str = "auto") -> ActorCritic:
    architecture = Architecture(network=network, hidden=(5,))
    return ActorCritic(space, ACTIONS, architecture, torch.Generator().manual_seed(1))


def rows(space: Space[Any], observations: list[Any]) -> Tensor:
    codec = ObservationCodec.of(space)
    found = [np.asarray(codec.row(each), codec.dtype) for each in observations]
    return torch.from_numpy(np.stack(found))


def features(space: Space[Any], observations: list[Any], network: str) -> Tensor:
    result: Tensor = model_of(space, network).policy_body(rows(space, observations))
    return result.detach()


@pytest.mark.parametrize("network", ["auto", "mlp"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("composed", [False, True], ids=["alone", "in a dict"])
def test_features_do_not_depend_on_the_dtype_and_range(
    composed: bool, layout: str, network: str
) -> None:
    shape = LAYOUTS[layout]
    given = np.random.default_rng(0).integers(0, 256, (4, *shape))

    def found(high: int, low: int, dtype: Any) -> Tensor:
        space: Space[Any] = spaces.Box(low, high, shape, dtype)
        observations: list[Any] = list((given * (high / 255)).astype(dtype))
        if composed:
            space = spaces.Dict(a=space, b=spaces.Discrete(2))
            observations = [{"a": each, "b": 1} for each in observations]
        return features(space, observations, network)

    expected = found(255, 0, np.uint8)
    assert expected.std(dim=0).max() > 1e-3
    for low, high, dtype in RANGES.values():
        torch.testing.assert_close(found(high, low, dtype), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_stacks_in_both_channel_orders_equal_frames_as_channels(dtype: Any) -> None:
    """In float32 and by squares of bytes, with 8 channels in one image as the reference."""
    given = np.random.default_rng(0).integers(0, 256, (5, 4, 2, 24, 20)).astype(dtype)
    layouts = {
        (8, 24, 20): given.reshape(5, 8, 24, 20),
        (4, 2, 24, 20): given,
        (4, 24, 20, 2): np.moveaxis(given, 2, -1),
    }
    expected, *found = [
        features(spaces.Box(0, 255, shape, dtype), list(each), "a3c")
        for shape, each in layouts.items()
    ]
    for each in found:
        torch.testing.assert_close(each, expected)


def test_parts_of_a_dict_are_scaled_by_their_own_range() -> None:
    space = spaces.Dict(
        a=spaces.Box(0, 255, (16, 17), np.uint8),
        b=spaces.Box(0, 1, (16, 16, 3), np.float64),
        c=CODES,
        d=spaces.Box(-1, 1, (3, 16, 16), np.float32),
        e=spaces.Box(0, 255, (16, 16, 1), np.int32),
    )
    space.seed(0)
    sampled = space.sample()
    encoder = model_of(space).policy_body[0]
    parts = [sampled["c"], sampled["a"] / 255, sampled["b"], sampled["d"], sampled["e"] / 255]
    expected = np.concatenate([part.ravel() for part in parts]).astype(np.float32)
    np.testing.assert_allclose(encoder(rows(space, [sampled]))[0], expected, rtol=1e-6)


@pytest.mark.parametrize("composed", [False, True], ids=["alone", "in a dict"])
def test_small_codes_are_not_scaled(composed: bool) -> None:
    codes = np.random.default_rng(0).integers(0, 11, CODES.shape, np.uint8)
    space = spaces.Dict(image=CODES) if composed else CODES
    seen = rows(space, [{"image": codes} if composed else codes])
    model = model_of(space)
    first = model.policy_body[0]
    assert isinstance(first, nn.Linear)
    assert model.value_body is not model.policy_body
    weight, bias = first.weight.detach().numpy(), first.bias.detach().numpy()
    expected = np.tanh(weight @ codes.ravel() + bias)
    np.testing.assert_allclose(model.policy_body(seen)[0].detach(), expected, rtol=1e-5)


# The message at the start of a run.

SMALL = spaces.Box(0, 255, (16, 16, 3), np.uint8)
UNBOUNDED = spaces.Box(-np.inf, np.inf, (84, 84, 3), np.float32)


@pytest.mark.parametrize(
    ("space", "described"),
    [
        (BYTES, []),
        (spaces.Box(0, 1, (3, 20, 20), np.float32), []),
        (spaces.Box(-1, 1, (30, 20), np.float32), []),
        (spaces.Box(0, 255, (64,), np.uint8), []),
        (spaces.Discrete(3), []),
        (CODES, ["[7, 7, 3] are flattened to 147 numbers, not scaled"]),
        (spaces.Box(0, 255, (5, 7), np.uint8), ["[5, 7] are flattened to 35 numbers, not scaled"]),
        (UNBOUNDED, ["[84, 84, 3] are flattened to 21,168 numbers, not scaled"]),
        (SMALL, ["[16, 16, 3] are flattened to 768 numbers, divided by 255"]),
        (
            spaces.Dict(a=CODES, b=BYTES, c=spaces.Tuple((SMALL,))),
            [
                "[7, 7, 3] are flattened to 147 numbers, not scaled",
                "[16, 16, 3] are flattened to 768 numbers, divided by 255",
            ],
        ),
    ],
    ids=str,
)
def test_image_like_spaces_that_are_flattened_are_described(space: Any, described: Any) -> None:
    lines = encoders.flattened_images(space)
    assert len(lines) == len(described)
    for line, start in zip(lines, described, strict=True):
        assert "\n" not in line
        assert line.startswith(f"observations of {start}")
        assert line.endswith(": normalize them, give a network, or network mlp if intended")


# Whole runs.

KINDS: dict[str, Space[Any]] = {
    "stack, channels first": spaces.Box(0, 255, (2, 3, 20, 24), np.uint8),
    "stack, channels last": spaces.Box(0, 255, (2, 20, 24, 3), np.uint8),
    "stack of floats": spaces.Box(0, 1, (2, 3, 20, 24), np.float32),
    "codes": CODES,
    "small": SMALL,
    **{name: spaces.Box(*values[:2], (20, 24, 3), values[2]) for name, values in RANGES.items()},
}
KINDS["dict"] = spaces.Dict(
    codes=CODES, camera=KINDS["floats in 0..1"], depth=KINDS["integers"], at=spaces.Discrete(3)
)


class ChainOfImages(envs.Chain):
    """Chain whose observations are in a given space: values up to `high` mark the state."""

    def __init__(self, space: Space[Any]) -> None:
        super().__init__()
        self.observation_space = space

    def _observe(self) -> Any:
        return self._mark(self.observation_space)

    def _mark(self, space: Space[Any]) -> Any:
        if isinstance(space, spaces.Dict):
            return {name: self._mark(part) for name, part in space.spaces.items()}
        if isinstance(space, spaces.Discrete):
            return np.int64(0)
        assert isinstance(space, spaces.Box)
        array = np.zeros(space.shape, space.dtype)
        array.reshape(-1)[self._state :: self.states] = space.high.flat[0]
        return array


def linear_body(space: Space[Any]) -> nn.Module:
    """Body for (7, 7, 3)."""
    return nn.Sequential(nn.Flatten(2), Floats(), nn.Linear(147, 8))


class Floats(nn.Module):
    """Conversion to float32."""

    def forward(self, seen: Tensor) -> Tensor:
        """Numbers as float32."""
        return seen.float()


def settings(space: Space[Any], run_dir: pathlib.Path, **more: Any) -> dict[str, Any]:
    plain = {"total_timesteps": 64, "seed": 1, "run_dir": str(run_dir)}
    return {"env": functools.partial(ChainOfImages, space), **plain, **more}


@pytest.mark.parametrize(
    ("space", "network", "printed"),
    [
        (CODES, "auto", True),
        (CODES, "mlp", False),
        (CODES, linear_body, False),
        (BYTES, "auto", False),
        (BYTES, "mlp", False),
        (spaces.Dict(a=CODES, b=BYTES), "a3c", True),
    ],
)
def test_a_run_prints_which_images_are_flattened_unless_requested(
    space: Any, network: Any, printed: bool, tmp_path: pathlib.Path, capsys: Any
) -> None:
    config = settings(space, tmp_path / "run", num_envs=2, vectorization="sync", network=network)
    a2c.train(a2c.Config(**config))
    lines = capsys.readouterr().out.splitlines()
    found = [line for line in lines if line.startswith("observations of [7, 7, 3] are flattened")]
    assert len(found) == printed
    assert not printed or lines.index(found[0]) < len(lines) - 3  # before training


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("algorithm", ["a2c", "td3"])
def test_agents_for_image_spaces_are_trained_saved_and_loaded(
    algorithm: str, name: str, tmp_path: pathlib.Path
) -> None:
    space = KINDS[name]
    config = settings(space, tmp_path / "run", quiet=True)
    if algorithm == "a2c":
        agent = a2c.train(a2c.Config(num_envs=2, vectorization="sync", **config))
    else:
        config["env"] = functools.partial(continuous, space)
        sizes = {"learning_starts": 32, "batch_size": 8, "buffer_size": 100, "hidden": (8,)}
        agent = td3.train(td3.Config(**config, **sizes))
    agent.save(tmp_path / "agent.pt")
    loaded = [hogwild_rl.load(tmp_path / "agent.pt"), hogwild_rl.load(tmp_path / "run")]
    env = config["env"]()
    env.reset(seed=0)
    observation = env.step(env.action_space.high if algorithm == "td3" else 1)[0]
    for other in loaded:
        np.testing.assert_array_equal(other.act(observation), agent.act(observation))
        batch = batch_of_one(space, observation)
        assert len(other.predict(batch, deterministic=True)[0]) == 1
        np.testing.assert_array_equal(
            other.evaluate(2, env=config["env"]), agent.evaluate(2, env=config["env"])
        )
    assert agent.checkpoint.counters.updates > 0


def continuous(space: Space[Any]) -> Any:
    """Chain with a continuous action."""
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    return TransformAction(ChainOfImages(space), lambda a: int(a[0] > 0), action_space)
