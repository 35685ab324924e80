"""Tests of reward and observation normalization, against NumPy and in whole runs."""

import math
import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import hogwild_rl
from hogwild_rl import a2c, a3c
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs.codecs import ObservationCodec
from hogwild_rl.errors import UserError
from hogwild_rl.learn.normalization import Normalization, Normalizer
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.runs.agent import Agent

T, B, GAMMA = 6, 3, 0.9
VECTOR = spaces.Box(-np.inf, np.inf, (4,), np.float32)
MIXED = spaces.Dict(a=spaces.Box(0, 255, (16, 17), np.uint8), b=spaces.Box(-9, 9, (4,), np.float32))


def normalization(workers: int = 1, space: Any = VECTOR, **enabled: bool) -> Normalization:
    flags = {"observations": False, "rewards": False, **enabled}
    return Normalization(workers, ObservationCodec.of(space), **flags)


def random_rewards(seed: int, rollouts: int) -> list[tuple[Any, Any, Any]]:
    """Returns rewards, ends and validity of consecutive rollouts, as a collector returns them."""
    rng, resetting, found = np.random.default_rng(seed), np.zeros(B, bool), []
    for _ in range(rollouts):
        rewards = rng.normal(0, 3, (T, B)).astype(np.float32)
        ended, valid = np.zeros((T, B), bool), np.ones((T, B), bool)
        for t in range(T):
            valid[t] = ~resetting
            ended[t] = resetting = (rng.random(B) < 0.25) & valid[t]
        rewards[~valid] = 0
        found.append((rewards, ended, valid))
    assert sum((~valid).sum() for _, _, valid in found) > 2
    return found


# Rewards.


@pytest.mark.parametrize(
    ("clip", "clipped"),
    [
        ("none", lambda reward: reward),
        ("sign", lambda reward: (reward > 0) * 1.0 - (reward < 0) * 1.0),
        (0.5, lambda reward: max(-0.5, min(0.5, reward))),
        (2, lambda reward: max(-2, min(2, reward))),
    ],
)
@pytest.mark.parametrize("factor", [1.0, 0.1])
def test_rewards_are_clipped_and_then_multiplied(clip: Any, clipped: Any, factor: float) -> None:
    normalizer = Normalizer(normalization(), 0, GAMMA, clip, factor)
    for rewards, ended, valid in random_rewards(1, 3):
        given = rewards.copy()
        assert normalizer.transform_rewards(rewards, ended, valid) is None
        expected = [factor * clipped(float(reward)) for reward in given.flat]
        np.testing.assert_allclose(rewards.ravel(), expected, rtol=1e-6)
        assert np.abs(given).max() > 2
    assert rewards.dtype == np.float32


@pytest.mark.parametrize("clip", ["none", "sign"])
def test_rewards_are_divided_by_the_deviation_of_all_past_returns(clip: Any) -> None:
    """Each environment has its own running return, which is reset at the end of an episode."""
    normalizer = Normalizer(normalization(rewards=True), 0, GAMMA, clip, 0.5)
    returns: list[float] = []
    running = [0.0] * B
    for rewards, ended, valid in random_rewards(2, 8):
        given = np.sign(rewards) if clip == "sign" else rewards.copy()
        for b in range(B):
            for t in range(T):
                if not valid[t, b]:
                    continue
                running[b] = float(given[t, b]) + GAMMA * running[b]
                returns.append(running[b])
                if ended[t, b]:
                    running[b] = 0.0
        normalizer.transform_rewards(rewards, ended, valid)
        deviation = math.sqrt(np.var(np.array(returns)) + 1e-8)
        np.testing.assert_allclose(rewards, 0.5 * given / deviation, rtol=1e-5)
    assert len(returns) < 8 * T * B  # some steps only reset


def test_two_workers_divide_by_the_deviation_of_their_common_returns() -> None:
    shared = normalization(2, rewards=True)
    workers = [Normalizer(shared, worker, 0.0, "none", 1.0) for worker in range(2)]
    seen = []
    for (rewards, ended, valid), worker in zip(
        random_rewards(3, 6), [0, 0, 1, 0, 1, 1], strict=True
    ):
        given = rewards.copy()
        seen.append(given[valid])  # the returns, as γ = 0
        workers[worker].transform_rewards(rewards, ended, valid)
        deviation = math.sqrt(np.var(np.concatenate(seen).astype(np.float64)) + 1e-8)
        np.testing.assert_allclose(rewards, given / deviation, rtol=1e-5)


def test_a_non_finite_reward_changes_no_moments_and_no_later_episode() -> None:
    shared = normalization(rewards=True)
    normalizer = Normalizer(shared, 0, GAMMA, "none", 1.0)
    rewards = np.array([[1.0], [np.inf], [2.0], [0.0], [3.0]], np.float32)
    ended = np.array([[False], [False], [True], [False], [False]])
    valid = np.array([[True], [True], [True], [False], [True]])
    normalizer.transform_rewards(rewards, ended, valid)
    merged = shared.moments["returns"].merged()
    assert (merged.count, merged.mean[0], merged.variance[0]) == (2, 2.0, 1.0)  # of 1 and 3


def test_the_first_reward_after_many_zeros_is_not_huge() -> None:
    normalizer = Normalizer(normalization(rewards=True), 0, GAMMA, "none", 0.5)
    rewards = np.zeros((10_000, 1), np.float32)
    rewards[-1] = 1.0
    normalizer.transform_rewards(rewards, np.zeros_like(rewards, bool), np.ones_like(rewards, bool))
    assert rewards[-1, 0] == 5.0  # 100 deviations, clipped to 10, times 0.5


# Observations.


def rollout_of(rows: Any, valid: Any = None) -> Rollout:
    """Returns a rollout with these observations, [T+1, B, *O]; by default all steps are valid."""
    empty = torch.zeros(0)
    valid = np.ones((len(rows) - 1, rows.shape[1]), bool) if valid is None else valid
    return Rollout(torch.from_numpy(rows), *[empty] * 5, torch.from_numpy(valid))


@pytest.mark.parametrize("space", [VECTOR, MIXED], ids=["vector", "with an image"])
def test_write_to_writes_the_moments_of_all_workers_observations(space: Any) -> None:
    """The moments exclude the last row of each rollout, invalid steps and non-finite rows."""
    shared, rng, seen = normalization(2, space, observations=True), np.random.default_rng(5), []
    normalizers = [Normalizer(shared, worker, GAMMA, "none", 1.0) for worker in range(2)]
    size = ObservationCodec.of(space).shape[0]
    for scale, worker in ((1, 0), (4, 1), (2, 0)):
        rows = (100 + scale * rng.normal(size=(T + 1, B, size))).astype(np.float32)
        valid = rng.random((T, B)) < 0.8
        seen.append(rows[:-1, :, :4][valid].astype(np.float64))
        normalizers[worker].add(rollout_of(rows, valid))
    nonfinite = np.full((2, B, size), np.nan, np.float32)
    normalizers[0].add(rollout_of(nonfinite))
    every = np.concatenate(seen)
    model = ActorCritic(space, spaces.Discrete(2), Architecture(standardize=True))
    shared.write_to(model)
    assert model.standardize is not None
    np.testing.assert_allclose(model.standardize.mean.numpy(), every.mean(0), rtol=1e-6)
    np.testing.assert_allclose(model.standardize.scale.numpy(), 1 / every.std(0), rtol=1e-5)
    assert not model.standardize.mean.requires_grad
    standard = model.standardize(torch.from_numpy(rows)).numpy()
    expected = (rows[..., :4] - every.mean(0)) / every.std(0)
    np.testing.assert_allclose(standard[..., :4], expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(standard[..., 4:], rows[..., 4:])


def test_disabled_normalization_does_not_change_the_model() -> None:
    shared = normalization()
    Normalizer(shared, 0, GAMMA, "none", 1.0).add(rollout_of(np.ones((T + 1, B, 4), np.float32)))
    model = ActorCritic(VECTOR, spaces.Discrete(2), Architecture(standardize=True))
    shared.write_to(model)
    assert model.standardize is not None
    assert model.standardize.mean.tolist() == [0] * 4
    assert shared.state() == {}


IMAGES = spaces.Box(0, 255, (2, 44, 40), np.uint8)


def random_images(seed: int) -> Any:
    """Returns dark images with random bright pixels and a white corner, [T+1, B, 2, 44, 40]."""
    rng = np.random.default_rng(seed)
    seen = rng.integers(20, 30, (T + 1, B, *IMAGES.shape), np.uint8)
    seen[rng.random(seen.shape) < 0.01] = 200
    seen[..., :4, :4] = 255
    return seen


def test_write_to_writes_the_mean_image_and_one_deviation_for_all_pixels() -> None:
    shared, first = normalization(2, IMAGES, observations=True), []
    for worker in (0, 1, 1):
        seen = random_images(len(first))
        valid = np.ones((T, B), bool)
        valid[0, len(first)] = False
        first.append(seen[0][valid[0]].reshape(B - 1, -1).astype(np.float64))
        Normalizer(shared, worker, GAMMA, "none", 1.0).add(rollout_of(seen, valid))
    every = np.concatenate(first)
    model = ActorCritic(IMAGES, spaces.Discrete(2), Architecture(standardize=True))
    assert model.standardize is not None
    assert model.standardize.scale.tolist() == [pytest.approx(1 / 255)]
    shared.write_to(model)
    mean, deviation = every.mean(0), math.sqrt(every.var(0).mean() + 4)
    np.testing.assert_allclose(model.standardize.mean.numpy(), mean, rtol=1e-5)
    assert model.standardize.scale.item() == pytest.approx(1 / deviation, rel=1e-5)
    assert not model.standardize.mean.requires_grad
    standard = model.standardize(torch.from_numpy(seen[0])).numpy()
    expected = (seen[0] - mean.round().reshape(IMAGES.shape)) / deviation
    np.testing.assert_allclose(standard, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(standard[..., :4, :4]).max() < 1  # constant pixels become small


@pytest.mark.parametrize("space", [IMAGES, spaces.Box(0, 255, (44, 40, 3), np.uint8)], ids=str)
def test_a_cnn_subtracts_the_mean_image(space: Any) -> None:
    """Equal to a CNN without normalization on normalized images, in both channel orders."""
    rng = np.random.default_rng(3)
    seen = torch.from_numpy(rng.integers(0, 255, (5, *space.shape), np.uint8))
    normalized = ActorCritic(space, spaces.Discrete(2), Architecture(standardize=True))
    plain = ActorCritic(space, spaces.Discrete(2), Architecture())
    unmatched = normalized.load_state_dict(plain.state_dict(), strict=False)
    assert {name.rpartition(".")[2] for name in unmatched.missing_keys} == {"mean", "scale"}
    assert normalized.standardize is not None
    normalized.standardize.mean.copy_(torch.from_numpy(rng.uniform(0, 255, seen[0].numel())))
    normalized.standardize.scale.fill_(0.03)
    mean = normalized.standardize.mean_image
    encoder = plain.policy_body
    planes = encoder._planes((seen.float() - mean) * 0.03)
    expected = encoder.rest(encoder.first(planes))
    torch.testing.assert_close(normalized.policy_body(seen), expected, rtol=1e-4, atol=1e-4)


def test_differences_of_bytes_are_exact_in_bfloat16() -> None:
    model = ActorCritic(IMAGES, spaces.Discrete(2), Architecture(standardize=True))
    encoder = model.policy_body
    with torch.autocast("cpu", torch.bfloat16):
        every = torch.arange(256, dtype=torch.uint8).repeat(IMAGES.shape[0] * 44 * 40 // 256 + 1)
        image = every[: 2 * 44 * 40].view(1, 2, 44, 40)
        for level in (0, 1, 127, 255):
            mean = torch.full_like(image, level)
            difference = encoder._squares(image).sub_(encoder._squares(mean))
            exact = encoder._squares(image).double() - level
            assert torch.equal(difference.double(), exact)


@pytest.mark.parametrize("case", ["two images", "an image of floats", "custom network"])
def test_unsupported_image_normalization_is_rejected(case: str) -> None:
    space: Any = IMAGES
    architecture = Architecture(standardize=True)
    if case == "two images":
        space = spaces.Tuple([IMAGES, IMAGES])
    elif case == "an image of floats":
        space = spaces.Box(0, 1, IMAGES.shape, np.float32)
    else:
        architecture = Architecture(standardize=True, network=lambda _: torch.nn.Flatten(2))
    with pytest.raises(UserError, match="normalize_observations supports vectors, or a"):
        ActorCritic(space, spaces.Discrete(2), architecture)


# Whole runs.

RUN: dict[str, Any] = {
    "env": "Pendulum-v1",
    "total_timesteps": 3_000,
    "normalize_observations": True,
    "normalize_rewards": True,
    "quiet": True,
}


def checked_count(agent: Agent) -> float:
    """Asserts that the model's constants equal the checkpoint's moments; returns their count."""
    moments = agent.checkpoint.normalization["observations"]
    count, mean, m2 = (moments[name].double() for name in ("count", "mean", "m2"))
    standardize = agent.model.standardize
    assert standardize is not None
    torch.testing.assert_close(standardize.mean, mean.float())
    torch.testing.assert_close(standardize.scale, ((m2 / count + 1e-8) ** -0.5).float())
    assert not torch.equal(standardize.scale, torch.ones(3))
    return float(count)


def test_moments_are_saved_loaded_and_resumed(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run"
    agent = a2c.train(a2c.Config(num_envs=4, run_dir=str(folder), **RUN))
    count, steps = checked_count(agent), agent.checkpoint.counters.steps
    # Observations of Pendulum: |cos| and |sin| are at most 1, the speed is at most 8.
    means = agent.checkpoint.normalization["observations"]["mean"].abs()
    assert bool((means <= torch.tensor([1.0, 1.0, 8.0])).all())
    assert count == steps
    assert float(agent.checkpoint.normalization["returns"]["count"]) == steps

    agent.save(tmp_path / "agent.pt")
    for loaded in (hogwild_rl.load(tmp_path / "agent.pt"), hogwild_rl.load(folder)):
        assert checked_count(loaded) == count
        assert loaded.evaluate(3, seed=4).tolist() == agent.evaluate(3, seed=4).tolist()

    resumed = a2c.train(a2c.Config(resume=str(folder), total_timesteps=5_000))
    assert checked_count(resumed) > count + 1_900
    assert resumed.checkpoint.counters.sessions == 2
    first, last = (each.checkpoint.normalization["returns"] for each in (agent, resumed))
    assert float(last["count"]) == resumed.checkpoint.counters.steps > float(first["count"])
    assert float(last["m2"]) > float(first["m2"])


def test_moments_of_two_workers_count_every_step_in_both_sessions(tmp_path: pathlib.Path) -> None:
    folder, counts = str(tmp_path / "run"), []
    first = {**RUN, "total_timesteps": 1_000, "workers": 2, "envs_per_worker": 2}
    for settings in ({"run_dir": folder, **first}, {"resume": folder, "total_timesteps": 2_000}):
        agent = a3c.train(a3c.Config(**settings))
        checked_count(agent)
        checkpoint = agent.checkpoint
        counts.append(checkpoint.counters.steps)
        assert float(checkpoint.normalization["returns"]["count"]) == counts[-1]
    assert counts[0] >= 1_000
    assert counts[1] >= 2_000


def test_logged_returns_are_untransformed(tmp_path: pathlib.Path) -> None:
    """Each step of CartPole has the reward 1, so the return equals the length."""
    run = a2c.Config(
        env="CartPole-v1",
        num_envs=2,
        total_timesteps=1_000,
        clip_rewards=0.5,
        reward_scale=0.01,
        normalize_rewards=True,
        quiet=True,
        run_dir=str(tmp_path / "run"),
    )
    agent = a2c.train(run)
    assert agent.run_dir is not None
    header, *_, last = (agent.run_dir / "progress.csv").read_text().splitlines()
    row = dict(zip(header.split(","), last.split(","), strict=True))
    assert float(row["return_mean"]) == float(row["length_mean"]) > 8
