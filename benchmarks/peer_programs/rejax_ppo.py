"""PPO of rejax with 64 environments of gymnax's CartPole-v1, compiled by JAX for the CPU."""

# mypy: disable-error-code="import-not-found, misc, untyped-decorator"
import itertools
import time
from typing import Any

import jax
from jax import numpy as jnp
from measurement import SOLVED_EPISODES, SOLVED_RETURN, RateMeter, arguments, report
from rejax import PPO
from rejax.algos.algorithm import register_init

_PACKAGES = ("rejax", "gymnax", "jax", "jaxlib", "flax", "numpy")
_NUM_ENVS = 64
_STEPS = 50 * 5 * _NUM_ENVS  # of one call of the compiled function
_SETTINGS: dict[str, Any] = {
    "env": "CartPole-v1",
    "agent_kwargs": {"activation": "tanh", "hidden_layer_sizes": (64, 64)},
    "num_envs": _NUM_ENVS,
    "skip_initial_evaluation": True,
}


class RecordingPPO(PPO):
    """PPO whose training state has the returns of the last 100 episodes."""

    @register_init
    def initialize_returns(self, rng: Any) -> Any:  # noqa: ARG002
        """Part of the training state; `recent` is a ring buffer."""
        return {
            "returns": jnp.zeros(_NUM_ENVS),
            "recent": jnp.zeros(SOLVED_EPISODES),
            "episodes": 0,
        }

    def collect_trajectories(self, ts: Any) -> Any:
        """Collects transitions and records the returns of the episodes that end."""
        ts, trajectories = super().collect_trajectories(ts)

        def record(carry: Any, step: Any) -> Any:
            returns, recent, episodes = carry
            reward, done = step
            returns += reward
            number = episodes + jnp.cumsum(done) - 1
            index = jnp.where(done, number % SOLVED_EPISODES, SOLVED_EPISODES)
            recent = recent.at[index].set(returns, mode="drop")
            return (returns * ~done, recent, episodes + done.sum()), None

        before = (ts.returns, ts.recent, ts.episodes)
        steps = (trajectories.reward, trajectories.done)
        (returns, recent, episodes), _ = jax.lax.scan(record, before, steps)
        return ts.replace(returns=returns, recent=recent, episodes=episodes), trajectories


def throughput(seconds: float, seed: int, epochs: int) -> float:
    """Steps per second with rollouts of 5 steps and one minibatch, without compilation."""
    ppo = PPO.create(
        **_SETTINGS,
        num_steps=5,
        num_epochs=epochs,
        num_minibatches=1,
        eval_freq=_STEPS,
        total_timesteps=_STEPS,
    ).replace(eval_callback=lambda *_: ())
    state = jax.jit(ppo.init_state)(jax.random.key(seed))
    train = jax.jit(lambda state: ppo.train(train_state=state)[0])
    meter = RateMeter(seconds)
    for calls in itertools.count(1):
        state = jax.block_until_ready(train(state))  # the first call compiles
        if meter.finished(calls * _STEPS):
            break
    return meter.per_s


def solve(seed: int) -> float:
    """Trains until solved; returns the time, in seconds since the epoch.

    The compiled function checks after every update whether it is solved. Of ten settings tried on
    four seeds, these solve CartPole-v1 with the fewest steps.
    """
    ppo = RecordingPPO.create(
        **_SETTINGS,
        num_steps=16,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=2.5e-3,
        max_grad_norm=0.5,
        ent_coef=0.0,
    )

    def unsolved(state: Any) -> Any:
        return (state.episodes < SOLVED_EPISODES) | (state.recent.mean() < SOLVED_RETURN)

    @jax.jit
    def train(key: Any) -> Any:
        return jax.lax.while_loop(unsolved, ppo.train_iteration, ppo.init_state(key))

    jax.block_until_ready(train(jax.random.key(seed)))
    return time.time()


def main() -> None:
    """Runs one task."""
    args = arguments(__doc__, "envs64", "solve")
    if args.task == "solve":
        report(*_PACKAGES, solved_at=solve(args.seed))
    else:
        report(*_PACKAGES, steps_per_s=throughput(args.seconds, args.seed, args.epochs))


if __name__ == "__main__":
    main()
