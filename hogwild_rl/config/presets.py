"""Tuned settings for known environments.

Tuned for two workers; benchmarks/README.md lists the source and the number of seeds of each.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch

_WORKERS_TUNED_FOR = 2

# Tuned on HalfCheetah-v5: short rollouts and a small initial standard deviation matter most.
_LOCOMOTION: dict[str, Any] = {
    "num_envs": 16,
    "n_steps": 8,
    "learning_rate": 1e-3,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "rms_eps": 1e-10,
    "log_std_init": -0.5,
    "normalize_observations": True,
    "normalize_rewards": True,
}
# num_envs is the total number of environments; A3C divides it by its workers.
_ACTOR_CRITIC: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "num_envs": 128,
        "total_timesteps": 1_000_000,
        "n_steps": 16,
        "learning_rate": 5e-3,
        "gamma": 0.98,
        "gae_lambda": 0.95,
        "ent_coef": 0.0,
    },
    "Acrobot-v1": {
        "num_envs": 16,
        "total_timesteps": 600_000,
        "n_steps": 16,
        "learning_rate": 7e-3,
        "gamma": 0.98,
        "gae_lambda": 1.0,
        "ent_coef": 0.01,
    },
    # Needs long rollouts and a small ε: with n_steps 5 to 32 the policy learns to hover.
    "LunarLander-v3": {
        "num_envs": 16,
        "total_timesteps": 3_000_000,
        "n_steps": 128,
        "learning_rate": 5e-3,
        "gamma": 0.999,
        "gae_lambda": 0.95,
        "ent_coef": 0.001,
        "reward_scale": 0.03,
        "rms_eps": 1e-10,
    },
    # Without normalized observations no episode reaches the goal: all returns are -200.
    "MountainCar-v0": {
        "num_envs": 64,
        "total_timesteps": 1_500_000,
        "n_steps": 32,
        "learning_rate": 8e-3,
        "gamma": 0.999,
        "gae_lambda": 0.95,
        "ent_coef": 0.0,
        "rms_eps": 1e-10,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "Pendulum-v1": {
        "num_envs": 32,
        "total_timesteps": 1_000_000,
        "n_steps": 32,
        "learning_rate": 2e-3,
        "gamma": 0.95,
        "gae_lambda": 0.95,
        "ent_coef": 0.0,
        "rms_eps": 1e-10,
        "log_std_init": -1.0,
        "activation": "relu",
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "MountainCarContinuous-v0": {
        "num_envs": 16,
        "total_timesteps": 400_000,
        "n_steps": 64,
        "learning_rate": 4e-3,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "ent_coef": 0.003,
        "rms_eps": 1e-10,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "HalfCheetah-v5": {"total_timesteps": 1_000_000, **_LOCOMOTION},
    "Hopper-v5": {"total_timesteps": 1_000_000, **_LOCOMOTION},
    "Walker2d-v5": {"total_timesteps": 1_000_000, **_LOCOMOTION},
    "Ant-v5": {"total_timesteps": 1_000_000, **_LOCOMOTION},
    "BipedalWalker-v3": {"total_timesteps": 4_000_000, **_LOCOMOTION},
    # Any Atari game, by the name of its family. Mean-subtracted images and a small vf_coef matter
    # most: the gradient of the value loss is much larger than the policy's.
    "ALE": {
        "num_envs": 16,
        "total_timesteps": 10_000_000,
        "n_steps": 20,
        "learning_rate": 3e-4,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "ent_coef": 0.005,
        "vf_coef": 0.25,
        "rms_eps": 1e-10,
        "clip_rewards": "sign",
        "normalize_observations": True,
        "precision": "bfloat16",
    },
}
# A2C on a GPU: batches that fill it; short rollouts, for more updates in the same steps.
_ACTOR_CRITIC["ALE on a GPU"] = _ACTOR_CRITIC["ALE"] | {
    "num_envs": 256,
    "n_steps": 5,
    "learning_rate": 6e-4,
}
_REINFORCE: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 1_000_000,
        "episodes": 16,
        "learning_rate": 5e-3,
        "gamma": 0.99,
        "ent_coef": 0.0,
        "max_grad_norm": 1e9,
    },
    # If no episode of a batch reaches the goal, all returns are -500 and the advantages over the
    # batch mean are 0: without the entropy bonus learning stops there.
    "Acrobot-v1": {
        "total_timesteps": 200_000,
        "episodes": 8,
        "learning_rate": 1e-2,
        "gamma": 0.99,
        "ent_coef": 0.01,
    },
}
_OFF_POLICY: dict[str, dict[str, Any]] = {
    "Pendulum-v1": {
        "total_timesteps": 20_000,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "buffer_size": 200_000,
    },
    # Without correlated noise it never reaches the flag and learns to avoid the action cost.
    "MountainCarContinuous-v0": {
        "total_timesteps": 100_000,
        "learning_rate": 1e-3,
        "batch_size": 100,
        "noise": "ou",
        "noise_std": 0.5,
        "buffer_size": 200_000,
    },
    "LunarLanderContinuous-v3": {
        "total_timesteps": 300_000,
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "batch_size": 100,
        "buffer_size": 200_000,
        "learning_starts": 10_000,
    },
    "HalfCheetah-v5": {
        "total_timesteps": 1_000_000,
        "learning_rate": 1e-3,
        "batch_size": 100,
        "learning_starts": 10_000,
    },
}
# With γ = 0.98 TD3, which underestimates, hovers until truncation: landing is too far in the
# future. More noise makes it land earlier. DDPG, which overestimates, gains nothing.
_TD3 = _OFF_POLICY | {
    "LunarLanderContinuous-v3": _OFF_POLICY["LunarLanderContinuous-v3"]
    | {"gamma": 0.99, "noise_std": 0.2},
}
_PRESETS = {"a3c": _ACTOR_CRITIC, "a2c": _ACTOR_CRITIC}
_UNSCALED = {"reinforce": _REINFORCE, "ddpg": _OFF_POLICY, "td3": _TD3}
ENVIRONMENTS = tuple(_ACTOR_CRITIC)
_FAMILIES = {r"ALE/.*|.*NoFrameskip-v\d+": "ALE"}

_GENERIC: dict[str, Any] = {"num_envs": 16}


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
    if algorithm in _UNSCALED:
        return dict(_UNSCALED[algorithm].get(env, {}))
    family = next((name for ids, name in _FAMILIES.items() if re.fullmatch(ids, env)), env)
    may_use_gpu = algorithm == "a2c" and given.get("device", "auto") != "cpu"
    if family == "ALE" and may_use_gpu and torch.cuda.is_available():
        family = "ALE on a GPU"
    preset = dict(_PRESETS[algorithm].get(family, _GENERIC))
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
