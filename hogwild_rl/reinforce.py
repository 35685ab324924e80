"""REINFORCE: Monte Carlo policy gradient; the simplest algorithm of this package.

    python -m hogwild_rl.reinforce
    python -m hogwild_rl.reinforce --env Acrobot-v1 --returns to-go --baseline mean

A policy π_θ gives a trajectory τ = s_0 a_0 r_0 s_1 … the probability P_θ(τ), and its value is
J(θ) = Σ_τ P_θ(τ) R(τ). Since ∇P = P ∇log P, the gradient is an expectation that samples estimate:

    ∇J = Σ_τ P_θ(τ) R(τ) ∇log P_θ(τ) = E[ R(τ) Σ_t ∇log π_θ(a_t|s_t) ]         --returns total

because in log P_θ(τ) = log p(s_0) + Σ_t log π_θ(a_t|s_t) + Σ_t log p(s_{t+1}|s_t, a_t) only the
middle term depends on θ. Given s_t, E[∇log π(a_t|s_t)] is 0, and so is its product with anything
known before a_t is sampled, such as earlier rewards. Without these terms the variance is lower:

    ∇J = E[ Σ_t ∇log π_θ(a_t|s_t) R_t ]        R_t = r_t + r_{t+1} + …          --returns to-go

For the same reason a baseline b that does not depend on a_t may be subtracted, R_t − b. `mean` is
the mean return of the other episodes, `value` a value network V(s_t) trained on the same returns.
R(τ) is the sum of all rewards. γ < 1 lowers the variance too: `total` then is the gradient of the
discounted J; `to-go` omits the factor γ^t, as is common practice, and is the gradient of no J (Nota
and Thomas 2020). Value loss and entropy bonus are added to the loss as in A3C.

Source: Williams 1992, sections 2 to 4; return to go: Sutton et al. 2000; baselines: Greensmith et
al. 2004.
"""

if __name__ == "__main__":
    from hogwild_rl.training import startup

    startup.prepare()

import dataclasses
from typing import Literal

import numpy as np

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.config import base, cli, validation
from hogwild_rl.config.policy import PolicyConfig
from hogwild_rl.envs import vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild.optimizers import SharedAdam
from hogwild_rl.hogwild.processes import Worker, prepare_process
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import losses, returns
from hogwild_rl.learn.losses import PolicyLoss
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.runs.state import TrainState
from hogwild_rl.training import devices, launch
from hogwild_rl.training.collector import Collector
from hogwild_rl.training.learner import Learner
from hogwild_rl.training.task import Task
from hogwild_rl.training.worker import iterations


@base.with_presets("reinforce")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PolicyConfig):
    """REINFORCE settings; unset fields come from the environment's preset."""

    returns: Literal["total", "to-go"] = "to-go"
    """Weight of an action: all rewards of its episode, or those that follow it."""
    baseline: Literal["none", "mean", "value"] = "mean"
    """Subtracted baseline: none, the mean of the other episodes, or a value network."""
    episodes: int = 16
    """Episodes per update, in as many environments."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.at_least("episodes", self.episodes, 1)
        if self.baseline == "mean" and self.episodes == 1:
            raise UserError("baseline mean is that of other episodes: give episodes 2 or more")


def episode_loss(model: ActorCritic, episodes: Rollout, config: Config) -> PolicyLoss:
    """Loss of whole episodes, [T, B]: its policy term has the gradient −∇J, estimated."""
    policy, values = model(episodes.observations)
    values, valid = values[:-1], episodes.valid
    to_go = returns.returns_to_go(episodes.rewards, config.gamma)
    weights = to_go
    if config.returns == "total":
        weights = returns.total_returns(episodes.rewards, config.gamma)
    entropy = losses.mean(policy.entropy(), valid)
    value_loss = losses.mean((to_go - values).square(), valid)
    total = -float(config.ent_coef) * entropy
    if config.baseline == "mean":
        weights = weights - returns.mean_of_others(weights)
    elif config.baseline == "value":
        total = total + config.vf_coef * value_loss
        weights = weights - values.detach()
    policy_loss = losses.reinforce_loss(policy.log_prob(episodes.actions), weights, valid)
    total = total + policy_loss
    return PolicyLoss(total, policy_loss, value_loss, entropy, values, to_go, valid)


def learn(worker: Worker, task: Task[Config]) -> None:
    """The training loop."""
    learner = Learner(worker, task, episode_loss)
    collector = Collector(worker, task, learner, whole_episodes=True)
    for progress in iterations(worker, task, collector):
        episodes = collector.collect()  # one whole episode from each environment
        learner.step(episodes, progress)  # θ ← θ + η Adam(clip(∇J))
        if collector.source.episodes:
            R = np.array(collector.source.episodes)[:, 0]
            number = task.updates_before + learner.counters.total_updates()
            task.info(
                f"update {number}: return mean {R.mean():.1f}, std {R.std():.1f}, "
                f"min {R.min():.1f}, max {R.max():.1f}"
            )


def train(config: Config) -> Agent:
    """Trains for `total_timesteps` and returns the agent.

    Raises:
        UserError: invalid setting, environment or folder; nothing was changed.
        KeyboardInterrupt, SystemExit: interrupted; a checkpoint was written.
    """
    prepare_process()
    run = Run("reinforce", config)
    backend = vectorize.choose(run.env.source, "auto", config.episodes, cores=1)
    model = SharedModel(config.model(run.env))
    optimizer = SharedAdam(model, config.learning_rate)
    moments = config.normalization(run.env, workers=1)
    state = TrainState(model, optimizer, moments, workers=1)
    run.open(state)
    with devices.limit_threads(model.module, config.episodes):
        task = Task.of(run, backend, state, group_size=config.episodes)
        return launch.in_this_process(run, learn, task)


def main() -> None:
    """Command line: ``python -m hogwild_rl.reinforce --help``."""
    train(cli.parse(Config, "reinforce", "Monte Carlo policy gradient, from whole episodes."))


if __name__ == "__main__":
    cli.run(main)
