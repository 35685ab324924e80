"""Tuned settings for known environments; `benchmarks/search.py` found them.

A preset states the total number of environments, which A3C shares out over its workers.
"""

from typing import Any

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
}
_GENERIC: dict[str, Any] = {"num_envs": 16}


def settings(algorithm: str, env: str, workers: int) -> dict[str, Any]:
    """The preset of an environment for an algorithm, or what suits any environment.

    Args:
        algorithm: its module's name, "a3c".
        env: name of the environment.
        workers: how many share the environments out.
    """
    preset = dict(_ACTOR_CRITIC.get(env, _GENERIC))
    preset["envs_per_worker"] = max(1, preset.pop("num_envs") // max(1, workers))
    return preset
