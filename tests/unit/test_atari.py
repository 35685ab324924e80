"""Tests of Atari: the C++ environments against gymnasium's wrappers, lives and reward clipping."""

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from hogwild_rl.collect.rollout import Collector, Rollout
from hogwild_rl.envs import atari, make, vectorize
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.learn.normalization import Clip, Normalization, Normalizer
from tests.envs import make_vector_env

pytest.importorskip("ale_py")
pytest.importorskip("cv2")  # gymnasium's wrappers need it

SEED = 3
GAMES = ["Pong", "Breakout", "SpaceInvaders", "Qbert", "Freeway"]
both_forms = pytest.mark.parametrize("form", ["native", "sync"])


def spec(game: str) -> EnvSpec:
    """Spec of a game without sticky actions."""
    return make.resolve(f"{game}NoFrameskip-v4")


def cpp(source: EnvSpec, num_envs: int, **options: Any) -> VectorEnv[Any, Any, Any]:
    made = atari.make_vector(source, num_envs, threads=1, **options)
    assert made is not None
    return made


# C++ against gymnasium's wrappers.


@pytest.mark.parametrize("game", GAMES)
def test_cpp_equals_gymnasiums_wrappers(game: str) -> None:
    """Bit for bit, also across resets at the end of a game."""
    source, rng = spec(game), np.random.default_rng(0)
    single, pair = atari.make(source, noops=0), cpp(source, 2, noops=0)
    assert pair.single_observation_space == single.observation_space
    assert pair.single_action_space == single.action_space
    observation, _ = single.reset(seed=SEED)
    np.testing.assert_array_equal(pair.reset(seed=SEED)[0], [observation] * 2)
    frames, total, ends, ended = {observation.tobytes()}, 0.0, 0, False
    for _ in range(600):
        action = rng.integers(single.action_space.n)
        if ended:
            (observation, info), outcome = single.reset(), (0.0, False, False)
        else:
            observation, *outcome, info = single.step(action)
        rows, rewards, terminated, truncated, infos = pair.step(np.array([action, action]))
        for b in range(2):
            np.testing.assert_array_equal(rows[b], observation)
            assert (rewards[b], terminated[b], truncated[b]) == tuple(outcome)
            assert infos["lives"][b] == info["lives"]
        ended = outcome[1] or outcome[2]
        total, ends = total + abs(outcome[0]), ends + ended
        frames.add(observation.tobytes())
    assert len(frames) > 100
    assert total > 0 or game == "Freeway"
    assert ends > 0 or game in ("Pong", "Freeway")
    single.close()
    pair.close()


@pytest.mark.parametrize("game", ["Breakout", "Qbert"])
def test_step_after_game_over_only_resets(game: str) -> None:
    """It ignores its action and returns reward 0 and the initial observation."""
    envs, rng = cpp(spec(game), 2, noops=0), np.random.default_rng(1)
    first, _ = envs.reset(seed=SEED)
    assert not first[:, :3].any()  # frames before the first are black
    games, ended = 0, False
    while games < 2:
        actions = np.full(2, rng.integers(4))
        if ended:
            actions = np.array([0, 3])
        rows, rewards, terminated, truncated, _ = envs.step(actions)
        if ended:
            np.testing.assert_array_equal(rows, first)
            assert rewards.tolist() == [0, 0]
            assert not (terminated | truncated).any()
            games += 1
        else:
            assert not (rows == first).all()
        ended = bool(terminated[0])
        assert terminated[0] == terminated[1]
    envs.close()


# Environment ids and settings.


@pytest.mark.parametrize("name", ["BreakoutNoFrameskip-v4", "ALE/Breakout-v5"])
def test_ids_are_preprocessed_games(name: str) -> None:
    env_info = make.inspect_env(name)
    assert env_info.frames_per_step == 4
    assert env_info.observation_space.shape == (4, 84, 84)
    assert ObservationCodec.of(env_info.observation_space).images[0].chw == (4, 84, 84)
    single, envs = make.make_env(name), make_vector_env(name, 2)
    assert type(envs).__name__ == "Games"
    assert single.observation_space == envs.single_observation_space == env_info.observation_space
    assert single.action_space == envs.single_action_space == env_info.action_space
    assert single.reset(seed=0)[0].shape == (4, 84, 84)
    _, _, _, _, info = single.step(single.action_space.sample())
    before = info["episode_frame_number"]
    _, _, _, _, info = single.step(single.action_space.sample())
    assert info["episode_frame_number"] == before + 4
    envs.reset(seed=0)
    before = envs.step(np.zeros(2, np.int64))[4]["episode_frame_number"]
    after = envs.step(np.zeros(2, np.int64))[4]["episode_frame_number"]
    assert (after - before).tolist() == [4, 4]
    assert vectorize.choose(env_info.source, "auto", 1, 2).name == "native"
    single.close()
    envs.close()


def test_other_environments_have_one_frame_per_step() -> None:
    assert make.inspect_env("CartPole-v1").frames_per_step == 1


def test_sticky_actions_follow_the_id() -> None:
    """With one sequence of actions, two seeds differ only if actions are sticky."""
    differ = {}
    for name in ("BreakoutNoFrameskip-v4", "ALE/Breakout-v5"):
        frames = []
        for seed in (1, 2):
            envs, rng = cpp(make.resolve(name), 1, noops=0), np.random.default_rng(0)
            envs.reset(seed=seed)
            rows = [envs.step(rng.integers(4, size=1))[0].copy() for _ in range(100)]
            frames.append(np.stack(rows))
            envs.close()
        differ[name] = bool((frames[0] != frames[1]).any())
    assert differ == {"BreakoutNoFrameskip-v4": False, "ALE/Breakout-v5": True}


def test_noop_starts_depend_on_the_seed() -> None:
    for made in (atari.make(spec("Breakout")), cpp(spec("Breakout"), 1)):
        starts = [made.reset(seed=seed)[1]["episode_frame_number"] for seed in (*range(8), 0)]
        frames = [int(np.squeeze(start)) for start in starts]
        assert len(set(frames)) > 3
        assert max(frames) <= 30 + 1  # FIRE is one more
        assert frames[0] == frames[-1]
        made.close()


@pytest.mark.parametrize("settings", [{"mode": 4}, {"difficulty": 1}], ids=str)
def test_modes_without_cpp_support_use_gymnasium(settings: dict[str, int]) -> None:
    source = make.resolve("ALE/Breakout-v5")
    changed = copy.deepcopy(source)
    changed.kwargs.update(settings)
    assert vectorize.has_native(source)
    assert not vectorize.has_native(changed)
    envs = make_vector_env(changed, 2)
    assert envs.reset(seed=0)[0].shape == (2, 4, 84, 84)
    assert [env.unwrapped._game_mode for env in envs.envs] == [settings.get("mode")] * 2
    envs.close()


@pytest.mark.parametrize("settings", [{"obs_type": "ram"}, {"continuous": True}], ids=str)
def test_ram_and_continuous_variants_are_not_preprocessed(settings: dict[str, Any]) -> None:
    changed = copy.deepcopy(make.resolve("ALE/Breakout-v5"))
    changed.kwargs.update(settings)
    env_info, envs = make.inspect_env(changed), make_vector_env(changed, 6)
    assert env_info.frames_per_step == 1
    assert envs.single_observation_space == env_info.observation_space
    assert envs.single_action_space == env_info.action_space
    envs.close()


# Lives and rewards.


def vectorized(game: str, form: str) -> VectorEnv[Any, Any, Any]:
    source = spec(game)
    made = make_vector_env(source, 2) if form == "native" else vectorize.sequential(source, 2)
    assert (type(made).__name__ == "Games") == (form == "native")
    return made


def collect(
    game: str, form: str, steps: int, clip: Clip = "none", **env_codec: Any
) -> tuple[Rollout, list[tuple[float, int]]]:
    """Rollout with random actions and a normalizer that only clips."""
    envs = vectorized(game, form)
    codec = ObservationCodec.of(envs.single_observation_space)
    transform = Normalizer(
        Normalization(1, codec, observations=False, rewards=False), 0, 0.99, clip, 1.0
    ).transform_rewards
    actions = ActionCodec.of(envs.single_action_space)
    full_codec = EnvCodec(codec, actions, rewards=transform, **env_codec)
    collector = Collector([envs], full_codec, steps, SEED, lambda *_: None)
    generator = torch.Generator().manual_seed(SEED)
    choices = int(envs.single_action_space.n)
    sample = functools.partial(torch.randint, choices, generator=generator)
    rollout = collector.collect(lambda rows, state: (sample((len(rows),)), state))
    envs.close()
    return rollout, collector.episodes


def replay(game: str, form: str, rollout: Rollout) -> dict[str, Any]:
    """Lives [T+1, B], rewards and ends [T, B] of the rollout's actions, without a collector."""
    envs = vectorized(game, form)
    _, info = envs.reset(seed=SEED)
    lives, rewards, ends = [info["lives"].copy()], [], []
    for actions in rollout.actions.numpy():
        _, reward, terminated, truncated, info = envs.step(actions)
        lives.append(info["lives"].copy())
        rewards.append(np.array(reward, np.float64))
        ends.append(terminated | truncated)
    envs.close()
    return {"lives": np.stack(lives), "rewards": np.stack(rewards), "ends": np.stack(ends)}


def whole_games(rewards: Any, ends: Any) -> list[tuple[float, int]]:
    """Return and length of every complete game."""
    games = []
    for b in range(rewards.shape[1]):
        start = 0
        for t in np.flatnonzero(ends[:, b]):
            games.append((float(rewards[start : t + 1, b].sum()), int(t + 1 - start)))
            start = t + 2  # the step in between only resets
    return sorted(games)


@both_forms
def test_lost_life_terminates_the_value_but_not_the_episode(form: str) -> None:
    rollout, episodes = collect("Breakout", form, 380, terminal_on_life_loss=True)
    expected = replay("Breakout", form, rollout)
    ends, lost = expected["ends"], (np.diff(expected["lives"], axis=0) < 0) & ~expected["ends"]
    assert ends.sum() >= 2
    assert lost.sum() >= 4 * ends.sum()  # four of five lives before the game is over
    np.testing.assert_array_equal(rollout.terminated.numpy(), ends | lost)
    assert not rollout.truncated.any()
    assert bool(rollout.valid.numpy()[1:][lost[:-1]].all())
    np.testing.assert_array_equal(rollout.valid.numpy()[1:], ~ends[:-1])
    assert sorted(episodes) == whole_games(expected["rewards"], ends)
    assert sum(episode_return for episode_return, _ in episodes) > 0
    without, same_episodes = collect("Breakout", form, 380)
    np.testing.assert_array_equal(without.terminated.numpy(), ends)
    assert sorted(same_episodes) == sorted(episodes)


def test_game_without_lives_never_terminates_on_life_loss() -> None:
    rollout, _ = collect("Pong", "native", 150, terminal_on_life_loss=True)
    assert not rollout.terminated.any()
    assert bool(rollout.valid.all())


@pytest.mark.parametrize(
    ("form", "clip"), [("native", "sign"), ("native", 20.0), ("native", 20), ("sync", "sign")]
)
def test_clipping_changes_rewards_but_not_reported_returns(form: str, clip: Clip) -> None:
    plain, unclipped_episodes = collect("Qbert", form, 450)
    clipped, episodes = collect("Qbert", form, 450, clip)
    rewards = replay("Qbert", form, plain)["rewards"]
    np.testing.assert_array_equal(plain.rewards.numpy(), rewards)
    limit = 1 if clip == "sign" else clip
    expected = np.where(rewards > 0, limit, 0) - np.where(rewards < 0, limit, 0)
    np.testing.assert_array_equal(clipped.rewards.numpy(), expected)
    assert rewards.max() >= 25 > limit
    assert episodes == unclipped_episodes
    assert max(episode_return for episode_return, _ in episodes) >= 25
