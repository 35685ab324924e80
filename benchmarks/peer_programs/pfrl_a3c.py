"""A3C of PFRL on CartPole-v1: two processes with one environment and one thread each."""

# mypy: disable-error-code="import-not-found, misc"
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import pfrl
import torch
from measurement import SOLVED_EPISODES, SOLVED_RETURN, RateMeter, arguments, report
from pfrl.agents import a3c
from pfrl.optimizers import SharedRMSpropEpsInsideSqrt
from pfrl.policies import SoftmaxCategoricalHead
from torch import nn

_PROCESSES = 2
_UNLIMITED = 10**12


class OldInterface(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Environment with the interface of old gym versions, as PFRL's training loop expects it.

    At the time limit `needs_reset` is set, as by pfrl.wrappers.ContinuingTimeLimit.
    """

    def __init__(self, seed: int, episode_ended: Callable[[float], None]) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._seed: int | None = seed
        self._episode_ended = episode_ended
        self._return = 0.0

    def reset(self, **_: Any) -> Any:
        """Returns the first observation of an episode."""
        observation, _ = self.env.reset(seed=self._seed)
        self._seed, self._return = None, 0.0
        return observation

    def step(self, action: Any) -> Any:
        """Returns observation, reward, done and info."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._return += float(reward)
        if terminated or truncated:
            self._episode_ended(self._return)
        info["needs_reset"] = truncated
        return observation, reward, terminated, info


def make_agent(learning_rate: float, t_max: int, beta: float) -> a3c.A3C:
    """Agent with separate 2×64 tanh networks; other settings from PFRL's A3C example."""
    hidden = [
        [nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()] for _ in ("policy", "value")
    ]
    policy = nn.Sequential(*hidden[0], nn.Linear(64, 2), SoftmaxCategoricalHead())
    model = pfrl.nn.Branched(policy, nn.Sequential(*hidden[1], nn.Linear(64, 1)))
    rmsprop = SharedRMSpropEpsInsideSqrt(model.parameters(), lr=learning_rate, eps=0.1, alpha=0.99)
    return a3c.A3C(model, rmsprop, t_max=t_max, gamma=0.99, beta=beta, max_grad_norm=40.0)


def train(agent: a3c.A3C, seed: int, stop: Any, episode_ended: Any, *hooks: Any) -> None:
    """Trains in two processes until the event `stop` is set."""
    seeds = [seed * _PROCESSES + process for process in range(_PROCESSES)]

    def make_env(process: int, test: bool) -> OldInterface:  # noqa: ARG001
        torch.set_num_threads(1)
        return OldInterface(seeds[process], episode_ended)

    with tempfile.TemporaryDirectory() as folder:
        pfrl.experiments.train_agent_async(
            folder,
            _PROCESSES,
            make_env,
            steps=_UNLIMITED,
            eval_interval=None,
            agent=agent,
            global_step_hooks=hooks,
            random_seeds=seeds,
            stop_event=stop,
        )


def throughput(seconds: float, seed: int) -> float:
    """Steps per second of both processes, with t_max 5; 0 if they crashed."""
    stop, rate = multiprocessing.Event(), multiprocessing.Value("d")
    meter = RateMeter(seconds)

    def measure(_env: Any, agent: a3c.A3C, steps: int) -> None:
        if agent.process_idx == 0 and meter.finished(steps):
            rate.value = meter.per_s
            stop.set()

    train(make_agent(7e-4, 5, 1e-2), seed, stop, lambda _: None, measure)
    return float(rate.value)


def solve(seed: int) -> float:
    """Trains until solved; returns the time, in seconds since the epoch, or 0 after a crash."""
    stop, solved_at = multiprocessing.Event(), multiprocessing.Value("d")
    recent, episodes = multiprocessing.Array("d", SOLVED_EPISODES), multiprocessing.Value("l")

    def episode_ended(episode_return: float) -> None:
        with recent.get_lock():
            recent[episodes.value % SOLVED_EPISODES] = episode_return
            episodes.value += 1
            complete = episodes.value >= SOLVED_EPISODES
            if complete and sum(recent[:]) / SOLVED_EPISODES >= SOLVED_RETURN and not stop.is_set():
                solved_at.value = time.time()
                stop.set()

    train(make_agent(2e-3, 20, 1e-3), seed, stop, episode_ended)
    return float(solved_at.value)


def main() -> None:
    """Runs one task."""
    args = arguments(__doc__, "a3c", "solve")
    multiprocessing.set_start_method("fork")  # PFRL's processes run closures
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    key = "solved_at" if args.task == "solve" else "steps_per_s"
    value = solve(args.seed) if args.task == "solve" else throughput(args.seconds, args.seed)
    if not value:
        raise SystemExit("the training processes crashed")
    report("pfrl", "torch", "gymnasium", "numpy", **{key: value})


if __name__ == "__main__":
    main()
