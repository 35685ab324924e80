"""REINFORCE: the policy gradient, from whole episodes. The shortest way into this package.

    python -m hogwild_rl.reinforce
    python -m hogwild_rl.reinforce --env Acrobot-v1 --returns to-go --baseline mean

A policy π_θ gives an episode τ = s_0 a_0 r_0 s_1 … the probability P_θ(τ), and its value is
J(θ) = Σ_τ P_θ(τ) R(τ). Since ∇P = P ∇log P, its gradient is a mean that playing can estimate:

    ∇J = Σ_τ P_θ(τ) R(τ) ∇log P_θ(τ) = E[ R(τ) Σ_t ∇log π_θ(a_t|s_t) ]         --returns total

as of log P_θ(τ) = log p(s_0) + Σ_t log π_θ(a_t|s_t) + Σ_t log p(s_{t+1}|s_t, a_t) only the middle
depends on θ. What was paid before a_t has nothing to do with a_t: given s_t, E[∇log π(a_t|s_t)] is
0, and so is its product with anything known before a_t is drawn. Leaving such terms out leaves the
mean as it is, and takes their noise away:

    ∇J = E[ Σ_t ∇log π_θ(a_t|s_t) R_t ]        R_t = r_t + r_{t+1} + …          --returns to-go

For the same reason a baseline b that does not depend on a_t may be taken off, R_t − b: actions are
then judged by whether they paid more than usual. `mean` is the mean return of the other episodes,
`value` a network's estimate V(s_t), which learns from the same returns. With γ < 1 later rewards
count less, which lowers the noise too; `total` then gives the gradient of the discounted J, and
`to-go` that of no J at all (Nota and Thomas 2020), though everybody uses it.

Source: Williams 1992, sections 2 to 4; return to go: Sutton et al. 2000; baselines: Greensmith et
al. 2004.
"""

import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training starts needs no words

import contextlib
import dataclasses
import functools
import math
import signal
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hogwild_rl.collect.episodes import EpisodeCollector
from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.config import base, cli, validation
from hogwild_rl.config.policy import PolicyConfig
from hogwild_rl.envs import vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.optimizers import SharedAdam
from hogwild_rl.hogwild.processes import random_seeds
from hogwild_rl.hogwild.shared_model import SharedModel, clip_by_global_norm_
from hogwild_rl.learn import losses, returns
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.training import devices


@base.with_presets("reinforce")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PolicyConfig):
    """Settings of REINFORCE. What is not given comes from the environment's preset."""

    returns: Literal["total", "to-go"] = "to-go"
    """What an action is credited with: all of its episode's rewards, or those that follow it."""
    baseline: Literal["none", "mean", "value"] = "mean"
    """What is taken off: nothing, the other episodes' mean, or a network's estimate."""
    episodes: int = 16
    """Played for each update, side by side."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.at_least("episodes", self.episodes, 1)
        if self.baseline == "mean" and self.episodes == 1:
            raise UserError("baseline mean is that of other episodes: give episodes 2 or more")


def reinforce_objective(model: ActorCritic, episodes: Rollout, config: Config) -> Tensor:
    """Minus the estimate of J, with what a value network and the policy's entropy add to it."""
    policy, values = model(episodes.observations)
    values, valid = values[:-1], episodes.valid
    credited = {"total": returns.total_returns, "to-go": returns.returns_to_go}[config.returns]
    credit = credited(episodes.rewards, config.gamma)
    loss = -config.ent_coef * losses.mean(policy.entropy(), valid)
    if config.baseline == "mean":
        credit = credit - returns.mean_of_others(credit)
    elif config.baseline == "value":
        ahead = returns.returns_to_go(episodes.rewards, config.gamma)
        loss = loss + config.vf_coef * losses.mean((ahead - values).square(), valid)
        credit = credit - values.detach()
    return loss + losses.reinforce_loss(policy.log_prob(episodes.actions), credit, valid)


def learn(
    config: Config,
    session: Run,
    shared: SharedModel[ActorCritic],
    optimizer: SharedAdam,
    normalization: Normalization,
    counters: Counters,
) -> None:
    """Play, learn, step, until the steps add up to the total."""
    env_seed, action_seed = random_seeds(config.seed, 0, session.before.sessions, 2)
    act = functools.partial(shared.module.act, generator=torch.Generator().manual_seed(action_seed))
    counts, normalizer = counters.writer(0), config.normalizer(normalization, 0)
    source, env_codec = session.env_info.source, config.env_codec(session.env_info, normalizer)
    backend = vectorize.choose(source, "auto", config.episodes, cores=1)
    envs = vectorize.make_envs(source, backend, config.episodes, cores=1)
    with contextlib.closing(envs):
        collector = EpisodeCollector(envs, env_codec, env_seed, counts.lap)
        while not session.ending:
            progress = (session.before.steps + counters.total("steps")) / config.total_timesteps
            if progress >= 1:
                break
            normalization.write_to(shared.module)
            episodes = collector.collect(act)
            normalizer.add(episodes)
            gradient = shared.gradient(reinforce_objective(shared.module, episodes, config))
            counts.add_rollout(collector.steps, collector.episodes)
            counts.add_nonfinite(collector.nonfinite_envs)
            if math.isfinite(clip_by_global_norm_(gradient, config.max_grad_norm)):
                optimizer.learning_rate = config.learning_rate_at(progress)
                optimizer.apply(gradient)
                counts.add_update(counts.total_updates())
            else:
                counts.add_dropped()
            counts.lap("learn")
            batch = session.before.updates + counters.total("updates")
            if collector.episodes:
                played = np.array(collector.episodes)[:, 0]
                session.info(
                    f"batch {batch}: return mean {played.mean():.1f}, std {played.std():.1f}, "
                    f"min {played.min():.1f}, max {played.max():.1f}"
                )
            session.observe(counters)


def train(config: Config) -> Agent:
    """Trains until `total_timesteps`, and returns the agent.

    Raises:
        UserError: a setting, the environment or the folder cannot be used; nothing was changed.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, likewise.
    """
    torch.set_flush_denormal(True)
    shared_memory.retain_freed_memory()
    session = Run("reinforce", config)
    shared = SharedModel(config.model(session.env_info))
    optimizer = SharedAdam(shared, config.learning_rate)
    normalization = config.normalization(session.env_info, workers=1)
    counters = Counters(1)
    finished = False
    with devices.limit_threads(shared.module, config.episodes), session.interruptible():
        session.open(shared.module, optimizer, normalization)
        try:
            learn(config, session, shared, optimizer, normalization, counters)
            finished = True
        finally:
            agent = session.close(counters, failed=not finished)
    return agent


def main() -> None:
    """The command line: ``python -m hogwild_rl.reinforce --help``."""
    train(cli.parse(Config, "reinforce", "The policy gradient, from whole episodes."))


if __name__ == "__main__":
    cli.run(main)
