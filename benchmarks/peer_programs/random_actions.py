"""Steps per second of CartPole-v1 alone: two processes with random actions and no training."""

import itertools
import multiprocessing

import gymnasium
from measurement import RateMeter, arguments, report

_PROCESSES = 2


def steps_per_s(seconds: float, seed: int) -> float:
    """Rate of one environment; the actions are sampled in advance."""
    env = gymnasium.make("CartPole-v1")
    env.reset(seed=seed)
    env.action_space.seed(seed)
    actions = itertools.cycle([env.action_space.sample() for _ in range(1000)])
    meter = RateMeter(seconds)
    for steps in itertools.count(1):
        _, _, terminated, truncated, _ = env.step(next(actions))
        if terminated or truncated:
            env.reset()
            if meter.finished(steps):
                break
    return meter.per_s


def main() -> None:
    """Measures all processes at the same time."""
    args = arguments(__doc__, "a3c")
    with multiprocessing.get_context("spawn").Pool(_PROCESSES) as pool:
        settings = [(args.seconds, args.seed * _PROCESSES + n) for n in range(_PROCESSES)]
        rates = pool.starmap(steps_per_s, settings, chunksize=1)
    report("gymnasium", "numpy", steps_per_s=sum(rates))


if __name__ == "__main__":
    main()
