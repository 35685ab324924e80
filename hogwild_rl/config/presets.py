"""Tuned settings for known environments.

Tuned for two workers; benchmarks/README.md lists the source and the number of seeds of each.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

_WORKERS_TUNED_FOR = 2

_Preset = dict[str, Any]

# Columns of the presets of A2C, PPO and A3C, which divides num_envs by its workers.
_COLUMNS = (
    *("num_envs", "total_timesteps", "n_steps", "learning_rate"),
    *("gamma", "gae_lambda", "ent_coef"),
)
# Defaults when the presets were tuned.
_TUNED_WITH = dict.fromkeys(
    ("normalize_observations", "normalize_rewards", "rescale_actions"), False
)


def _actor_critic(*values: float, **others: Any) -> _Preset:
    return dict(zip(_COLUMNS, values, strict=True)) | _TUNED_WITH | others


_BOTH = {"normalize_observations": True, "normalize_rewards": True}
_NORMALIZED = {**_BOTH, "rms_eps": 1e-10}
# Mean-subtracted images and a small vf_coef matter most: the gradient of the value loss is much
# larger than the policy's.
_ATARI: _Preset = {
    "vf_coef": 0.25,
    "rms_eps": 1e-10,
    "clip_rewards": "sign",
    "normalize_observations": True,
    "precision": "bfloat16",
}


def _locomotion(total_timesteps: int) -> _Preset:
    """Tuned on HalfCheetah-v5: short rollouts and a small initial σ matter most."""
    others = {"log_std_init": -0.5, **_NORMALIZED}
    return _actor_critic(16, total_timesteps, 8, 1e-3, 0.99, 0.95, 0.0, **others)


_ACTOR_CRITIC = {
    "CartPole-v1": _actor_critic(128, 1_000_000, 16, 5e-3, 0.98, 0.95, 0.0),
    "Acrobot-v1": _actor_critic(16, 600_000, 16, 7e-3, 0.98, 1.0, 0.01),
    # Needs long rollouts and a small ε: with n_steps 5 to 32 the policy learns to hover.
    "LunarLander-v3": _actor_critic(
        16, 3_000_000, 128, 5e-3, 0.999, 0.95, 0.001, reward_scale=0.03, rms_eps=1e-10
    ),
    # Without normalized observations no episode reaches the goal: all returns are -200.
    "MountainCar-v0": _actor_critic(64, 1_500_000, 32, 8e-3, 0.999, 0.95, 0.0, **_NORMALIZED),
    "Pendulum-v1": _actor_critic(
        *(32, 1_000_000, 32, 2e-3, 0.95, 0.95, 0.0),
        log_std_init=-1.0,
        activation="relu",
        **_NORMALIZED,
    ),
    "MountainCarContinuous-v0": _actor_critic(
        16, 400_000, 64, 4e-3, 0.99, 0.95, 0.003, **_NORMALIZED
    ),
    **dict.fromkeys(
        ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5"), _locomotion(1_000_000)
    ),
    "BipedalWalker-v3": _locomotion(4_000_000),
    # Any Atari game, by the name of its family.
    "ALE": _actor_critic(16, 10_000_000, 20, 3e-4, 0.99, 0.95, 0.005, **_ATARI),
    # A2C on a GPU: batches that fill it; short rollouts, for more updates in the same steps.
    "ALE on a GPU": _actor_critic(256, 10_000_000, 5, 6e-4, 0.99, 0.95, 0.005, **_ATARI),
}


# The settings of RL Baselines3 Zoo, where no comment says otherwise.
_PPO: dict[str, _Preset] = {
    "CartPole-v1": _actor_critic(8, 100_000, 32, 1e-3, 0.98, 0.8, 0.0, epochs=20, batch_size=256),
    "Acrobot-v1": _actor_critic(
        16, 1_000_000, 256, 3e-4, 0.99, 0.94, 0.0, epochs=4, batch_size=64, **_BOTH
    ),
    "LunarLander-v3": _actor_critic(
        16, 1_000_000, 1024, 3e-4, 0.999, 0.98, 0.01, epochs=4, batch_size=64
    ),
    "MountainCar-v0": _actor_critic(
        16, 1_000_000, 16, 3e-4, 0.99, 0.98, 0.0, epochs=4, batch_size=64, **_BOTH
    ),
    "Pendulum-v1": _actor_critic(4, 100_000, 1024, 1e-3, 0.9, 0.95, 0.0, epochs=10, batch_size=64),
}

_REINFORCE: dict[str, _Preset] = {
    "CartPole-v1": {
        "total_timesteps": 1_000_000,
        "episodes": 16,
        "learning_rate": 5e-3,
        "gamma": 0.99,
        "ent_coef": 0.0,
        "max_grad_norm": 1e9,
        **_TUNED_WITH,
    },
    # If no episode of a batch reaches the goal, all returns are -500 and the advantages over the
    # batch mean are 0: without the entropy bonus learning stops there.
    "Acrobot-v1": {
        "total_timesteps": 200_000,
        "episodes": 8,
        "learning_rate": 1e-2,
        "gamma": 0.99,
        "ent_coef": 0.01,
        **_TUNED_WITH,
    },
}


def _off_policy(total_timesteps: int, **others: Any) -> _Preset:
    return {"total_timesteps": total_timesteps, "learning_rate": 1e-3, **others}


_OFF_POLICY = {
    "Pendulum-v1": _off_policy(20_000, gamma=0.98, buffer_size=200_000),
    # Without correlated noise it never reaches the flag and learns to avoid the action cost.
    "MountainCarContinuous-v0": _off_policy(
        100_000, batch_size=100, noise="ou", noise_std=0.5, buffer_size=200_000
    ),
    "LunarLanderContinuous-v3": _off_policy(
        300_000, gamma=0.98, batch_size=100, buffer_size=200_000, learning_starts=10_000
    ),
    "HalfCheetah-v5": _off_policy(1_000_000, batch_size=100, learning_starts=10_000),
}
# With γ = 0.98 TD3, which underestimates, hovers until truncation: landing is too far in the
# future. More noise makes it land earlier. DDPG, which overestimates, gains nothing.
_LANDER = {**_OFF_POLICY["LunarLanderContinuous-v3"], "gamma": 0.99, "noise_std": 0.2}
_TD3 = {**_OFF_POLICY, "LunarLanderContinuous-v3": _LANDER}
_ACTOR_CRITICS = dict.fromkeys(("a3c", "a2c"), _ACTOR_CRITIC)
_PRESETS = {
    **_ACTOR_CRITICS,
    "ppo": _PPO,
    "reinforce": _REINFORCE,
    "ddpg": _OFF_POLICY,
    "td3": _TD3,
}
ENVIRONMENTS = tuple(_ACTOR_CRITIC)
_FAMILIES = {r"ALE/.*|.*NoFrameskip-v\d+": "ALE"}

_GENERIC: dict[str, Any] = {"num_envs": 16}


def find(algorithm: str, env: str) -> _Preset | None:
    """Returns the preset of an environment or its family, or None."""
    family = next((name for ids, name in _FAMILIES.items() if re.fullmatch(ids, env)), env)
    return _PRESETS[algorithm].get(family)


def settings(algorithm: str, env: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the preset of an environment for an algorithm, or generic settings.

    With fewer environments per update than the preset was tuned for (more workers, or a number
    given by the user) the gradient is noisier: the learning rate is scaled by √(batch / tuned
    batch), the square-root rule for adaptive optimizers.

    Args:
        algorithm: module name of the algorithm, such as "a3c".
        env: name of the environment.
        given: settings given by the user; for A3C always with `workers`.

    Source: Malladi et al. 2022 (arXiv:2205.10287), definition 4.1. Without the rule, 16 workers
    failed on one of three seeds of CartPole-v1.
    """
    found = find(algorithm, env)
    if algorithm not in _ACTOR_CRITICS:
        return dict(found or {})
    may_use_gpu = algorithm == "a2c" and given.get("device", "auto") != "cpu"
    if found is _ACTOR_CRITIC["ALE"] and may_use_gpu and torch.cuda.is_available():
        found = _ACTOR_CRITIC["ALE on a GPU"]
    preset = dict(found or _GENERIC)
    tuned_for = preset["num_envs"]
    if algorithm == "a3c":
        tuned_for /= _WORKERS_TUNED_FOR
        preset["envs_per_worker"] = max(1, preset.pop("num_envs") // max(1, given["workers"]))
        envs = given.get("envs_per_worker", preset["envs_per_worker"])
    else:
        envs = given.get("num_envs", tuned_for)
    if "learning_rate" in preset:
        preset["learning_rate"] *= min(1.0, math.sqrt(max(1, envs) / tuned_for))
    return preset
