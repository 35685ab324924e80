"""A2C: synchronous advantage actor-critic, one vector environment and one batched update.

    python -m hogwild_rl.a2c --env CartPole-v1
    python -m hogwild_rl.a2c --env LunarLander-v3 --num-envs 64 --device auto
    torchrun --standalone --nproc-per-node 2 -m hogwild_rl.a2c --env CartPole-v1

All environments take `n_steps` steps with the same parameters, the gradient of their loss is taken
in one batch, and the parameters take one step with it. With one worker, A3C is the same algorithm,
bit for bit.

Source: Mnih et al. 2016 (arXiv:1602.01783), made synchronous: Wu et al. 2017 (arXiv:1708.05144),
section 5.
"""

import os
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training starts needs no words
    os.environ.setdefault("GOMP_SPINCOUNT", "100000")  # torch's threads wait, but not for ever

import contextlib
import dataclasses
import functools
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl.collect.rollout import Act, Collector, Rollout
from hogwild_rl.config import base, cli, resources, validation
from hogwild_rl.config.network import name_of
from hogwild_rl.config.policy import ActorCriticConfig
from hogwild_rl.envs import atari, vectorize
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import processes, shared_memory
from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.processes import random_seeds
from hogwild_rl.hogwild.shared_model import SharedModel, clip_by_global_norm_
from hogwild_rl.learn import cuda_graphs, losses
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.run import Run
from hogwild_rl.training import devices, launch
from hogwild_rl.training.distributed import Ranks
from hogwild_rl.training.exact_resume import WorkerState
from hogwild_rl.training.outcomes import Outcomes

_OBSERVE_EVERY_S = 0.05
_GROUPS_FROM = 32  # environments
_SLOW_FROM = 32  # games; ALE takes 75 ms to make one, and does not let other threads run meanwhile


@base.with_presets("a2c")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticConfig, base.DeviceConfig):
    """Settings of A2C. What is not given comes from the environment's preset."""

    num_envs: int = 16
    """Environments that step together, over all ranks."""
    env_groups: Literal["auto"] | int = "auto"
    """2: the policy acts for one half of the environments while the other half steps. auto: 2 on a
    GPU for 32 or more environments that step in threads or processes, else 1."""
    vectorization: vectorize.Vectorization = "auto"
    """What steps them: gymnasium's native form, in turn, processes or EnvPool."""

    def __post_init__(self) -> None:
        super().__post_init__()
        validation.at_least("num_envs", self.num_envs, 1)
        if self.env_groups == "auto":
            return
        validation.at_least("env_groups", self.env_groups, 1)
        if self.num_envs % self.env_groups:
            raise UserError(
                f"num_envs must be a multiple of env_groups, got {self.num_envs} and "
                f"{self.env_groups}"
            )


def learn(
    config: Config,
    session: Run,
    shared: SharedModel[ActorCritic],
    optimizer: SharedRMSprop,
    normalization: Normalization,
    counters: Counters,
    ranks: Ranks,
    backend: vectorize.Backend,
    size: int,
) -> dict[str, Any]:
    """Act, learn, step, until the steps of all ranks add up to the total.

    Returns:
        What it was in the middle of then.
    """
    device, counts, observed_s = shared.flat.device, counters.writer(0), 0.0
    env_seed, action_seed = random_seeds(config.seed, ranks.index, session.before.sessions, 2)
    generator = torch.Generator(device).manual_seed(action_seed)
    with environments(config, session, backend, size, ranks) as envs:
        on_cpu = device.type == "cpu"
        copied_to = None if on_cpu else device
        normalizer = config.normalizer(normalization, ranks.index)
        env_codec = config.env_codec(session.env_info, normalizer)
        collector = Collector(envs, env_codec, config.n_steps, env_seed, counts.lap, copied_to)
        worker_state = WorkerState(generator, envs, collector, normalizer)
        alone = ranks.count == 1  # what one rank was in the middle of is none of the others'
        reset = worker_state.restore(session.resumed_state if alone else None, env_seed)
        if reset:
            session.info(f"episodes begin anew: {reset}")
        act, take_gradient, take_step = computations(
            config, shared, optimizer, collector.rollout, size, generator
        )
        outcomes, ending = Outcomes(counts, device), False
        while not ending:
            progress = (session.before.steps + counters.total("steps")) / config.total_timesteps
            if progress >= 1:
                break
            normalization.write_to(shared.module)
            collector.collect(act)
            gradient = take_gradient()
            normalizer.add(collector.host)  # while a GPU computes the gradient
            ranks.exchange(normalization, device)
            steps, episodes, ending = ranks.combine(
                gradient, collector.steps, collector.episodes, session.ending
            )
            counts.add_rollout(steps, episodes)
            counts.add_nonfinite(collector.nonfinite_envs)
            optimizer.learning_rate = config.learning_rate_at(progress)
            counts.lap("learn")
            if not on_cpu:
                outcomes.add(take_step())
            elif math.isfinite(clip_by_global_norm_(gradient, config.max_grad_norm)):
                optimizer.apply(gradient)
                counts.add_update(counts.total_updates())
            else:
                counts.add_dropped()
            counts.lap("share")
            if time.monotonic() - observed_s >= _OBSERVE_EVERY_S:
                observed_s = time.monotonic()
                session.observe(counters, worker_state.state if alone else None)
        outcomes.finish()
        counts.add_rollout(0, ranks.gather())
        return worker_state.state() if alone else {}


def computations(
    config: Config,
    shared: SharedModel[ActorCritic],
    optimizer: SharedRMSprop,
    rollout: Rollout,
    size: int,
    generator: torch.Generator,
) -> tuple[Act, Callable[[], Tensor], Callable[[], Tensor]]:
    """Acting for a group of `size`, the gradient of a rollout, and a device's step with it.

    The step clips, and reports as a bool tensor whether the gradient was finite and the step taken.
    """
    device = shared.flat.device
    act: Act = functools.partial(shared.module.act, generator=generator)

    def take_gradient() -> Tensor:
        return shared.gradient(losses.actor_critic_loss(shared.module, rollout, config))

    def take_step() -> Tensor:
        return optimizer.apply_if_finite(shared.gradient.flat, config.max_grad_norm)

    if not config.compiles(device):
        return act, take_gradient, take_step
    with cuda_graphs.recording(name_of(config.network)):
        return (
            cuda_graphs.captured_act(act, rollout, size, generator),
            cuda_graphs.Captured(take_gradient, device),
            cuda_graphs.Captured(take_step, device, changes=optimizer.tensors),
        )


def group_size(config: Config, ranks: Ranks, overlapping: bool) -> int:
    """How many environments of a rank step together; auto: half, if that overlaps with a GPU."""
    groups = config.env_groups
    if groups == "auto":
        even = config.num_envs % (2 * ranks.count) == 0
        groups = 2 if overlapping and even and config.num_envs >= _GROUPS_FROM else 1
    return ranks.share("num_envs / env_groups", config.num_envs // groups)


@contextlib.contextmanager
def environments(
    config: Config, session: Run, backend: vectorize.Backend, size: int, ranks: Ranks
) -> Iterator[list[VectorEnv[Any, Any, Any]]]:
    """This rank's groups of `size` environments; closed on leaving."""
    if backend.name == "async":
        processes.preload("hogwild_rl.runs.run")  # or every process would import torch
    share = config.num_envs // ranks.count
    numbers = range(ranks.index * share, (ranks.index + 1) * share)
    failed = launch.restart_policy(session, numbers, config, config.n_steps)
    with contextlib.ExitStack() as opened:
        groups = []
        for first in numbers[::size]:
            if size >= _SLOW_FROM and atari.is_game(session.env_info.source):
                session.info(f"making {size} games, one after another")
            envs = vectorize.make_envs(
                session.env_info.source,
                backend,
                size,
                base.usable_cores(),
                first,
                failed,
                config.step_timeout,
            )
            opened.callback(envs.close)
            groups.append(envs)
        yield groups


def train(config: Config) -> Agent:
    """Trains until `total_timesteps`, and returns the agent.

    On the CPU it makes this thread flush denormals, as A3C's workers do: averages of dead units
    decay into them, and they are slow. The process keeps memory that it frees.

    Raises:
        UserError: a setting, the environment or the folder cannot be used; nothing was changed.
        RunFailedError: environments' processes failed too often, or all at once; a checkpoint was
            written.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written.
        SystemExit: SIGTERM, likewise.
    """
    torch.set_flush_denormal(True)
    shared_memory.retain_freed_memory()
    ranks = Ranks.here()
    session = Run("a2c", config, reports=ranks.index == 0)
    model = config.model(session.env_info)
    device = devices.choose(config.device, model, ranks)
    bfloat16 = devices.bfloat16(config.precision, session.env_info, device.device.type)
    if bfloat16.on:  # what pays depends on the device, and that on the model's size
        model = config.model(session.env_info, bfloat16=True)
    config.compiles(device.device)
    source, cores = session.env_info.source, base.usable_cores()
    size = group_size(config, ranks, overlapping=False)
    backend = vectorize.choose(source, config.vectorization, size, cores)
    overlapping = device.device.type != "cpu" and vectorize.steps_asynchronously(source, backend)
    size = group_size(config, ranks, overlapping)
    config.check_rollouts(session.env_info, config.num_envs // ranks.count)
    if backend.name == "async":
        resources.check_environments(config.num_envs // ranks.count)
    normalization = config.normalization(session.env_info, ranks.count)
    counters = Counters(1)
    left: dict[str, Any] | None = None
    with (
        devices.enough_memory(f"num_envs {config.num_envs} and n_steps {config.n_steps}"),
        devices.limit_threads(model, config.num_envs),
        ranks.joined(device.device),
        session.interruptible(),
    ):
        shared = SharedModel(model, device.device)
        optimizer = SharedRMSprop(shared, config.learning_rate, config.rms_alpha, config.rms_eps)
        session.open(shared.module, optimizer, normalization)
        session.info(f"device {device.device}: {device.reason}")
        session.info(f"vectorization {backend.name}: {backend.reason}")
        if bfloat16.reason:
            session.info(f"precision float32: {bfloat16.reason}")
        try:
            left = learn(
                config, session, shared, optimizer, normalization, counters, ranks, backend, size
            )
        finally:
            agent = session.close(counters, left is None, lambda: left)
    return agent


def main() -> None:
    """The command line: ``python -m hogwild_rl.a2c --help``."""
    train(cli.parse(Config, "a2c", "Synchronous advantage actor-critic, batched on one device."))


if __name__ == "__main__":
    cli.run(main)
