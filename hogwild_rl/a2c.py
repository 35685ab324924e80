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
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from hogwild_rl import UserError
from hogwild_rl.envs import backends
from hogwild_rl.hogwild import memory, workers
from hogwild_rl.hogwild.model import SharedModel, clip_by_global_norm_
from hogwild_rl.hogwild.optim import SharedRMSprop
from hogwild_rl.hogwild.slots import Slots
from hogwild_rl.hogwild.worker import random_seeds
from hogwild_rl.learning import graphs, losses
from hogwild_rl.learning.rollout import Act, Collector
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.runs import cli, crew, devices, machine, settings
from hogwild_rl.runs.actor_critic import ActorCriticSettings
from hogwild_rl.runs.agent import Agent
from hogwild_rl.runs.normalize import Normalization
from hogwild_rl.runs.ranks import Ranks
from hogwild_rl.runs.recall import Recall
from hogwild_rl.runs.session import Session

_OBSERVE_EVERY_S = 0.05


@settings.completed("a2c")
@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ActorCriticSettings, settings.CrewSettings):
    """Settings of A2C. What is not given comes from the environment's preset."""

    num_envs: int = 16
    """Environments that step together, over all ranks."""
    env_groups: int = 1
    """2: the policy acts for one half of the environments while the other half steps."""
    vectorization: backends.Vectorization = "auto"
    """What steps them: gymnasium's native form, in turn, processes or EnvPool."""
    device: devices.DeviceName = "auto"
    """Where acting and learning are computed."""
    compile: bool = False
    """Record acting and the gradient as CUDA graphs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_envs", "env_groups"):
            settings.at_least(name, getattr(self, name), 1)
        if self.num_envs % self.env_groups:
            raise UserError(
                f"num_envs must be a multiple of env_groups, got {self.num_envs} and "
                f"{self.env_groups}"
            )


def learn(
    config: Config,
    session: Session,
    shared: SharedModel[ActorCritic],
    optimizer: SharedRMSprop,
    normalization: Normalization,
    slots: Slots,
    ranks: Ranks,
    backend: backends.Backend,
) -> dict[str, Any]:
    """Act, learn, step, until the steps of all ranks add up to the total.

    Returns:
        What it was in the middle of then.
    """
    device, slot, observed_s = shared.flat.device, slots.writer(0), 0.0
    env_seed, action_seed = random_seeds(config.seed, ranks.index, session.before.lives, 2)
    generator = torch.Generator(device).manual_seed(action_seed)
    size = group_size(config, ranks)
    with environments(config, session, backend, size, ranks.index) as envs:
        copied_to = None if device.type == "cpu" else device
        normalizer = config.normalizer(normalization, ranks.index)
        interface = config.interface(session.facts, normalizer)
        collector = Collector(envs, interface, config.n_steps, env_seed, slot.lap, copied_to)
        recall = Recall(generator, envs, collector, normalizer)
        alone = ranks.count == 1  # what one rank was in the middle of is none of the others'
        recall.restore(session.recalled if alone else None, env_seed)
        act: Act = functools.partial(shared.module.act, generator=generator)

        def gradient_of_rollout() -> Tensor:
            return shared.gradient(losses.of_rollout(shared.module, collector.rollout, config))

        take_gradient: Callable[[], Tensor] = gradient_of_rollout
        if config.compile:
            act = graphs.captured_act(act, collector.rollout, size, generator)
            take_gradient = graphs.Captured(gradient_of_rollout)
        ending = False
        while not ending:
            progress = (session.before.steps + slots.total("steps")) / config.total_timesteps
            if progress >= 1:
                break
            normalization.freeze(shared.module)
            normalizer.add(collector.collect(act))
            ranks.exchange(normalization, device)
            gradient = take_gradient()
            steps, episodes, ending = ranks.combine(
                gradient, collector.steps, collector.episodes, session.ending
            )
            slot.add_rollout(steps, episodes)
            slot.add_broken(collector.broken)
            norm = clip_by_global_norm_(gradient, config.max_grad_norm)
            slot.lap("learn")
            if math.isfinite(norm):
                optimizer.learning_rate = config.learning_rate_at(progress)
                optimizer.apply(gradient)
                slot.add_update(slot.total_updates())
            else:
                slot.add_dropped()
            slot.lap("share")
            if time.monotonic() - observed_s >= _OBSERVE_EVERY_S:
                observed_s = time.monotonic()
                session.observe(slots, recall.state if alone else None)
        return recall.state() if alone else {}


def group_size(config: Config, ranks: Ranks) -> int:
    """How many environments of this rank step together."""
    return ranks.share("num_envs / env_groups", config.num_envs // config.env_groups)


@contextlib.contextmanager
def environments(
    config: Config, session: Session, backend: backends.Backend, size: int, rank: int
) -> Iterator[list[VectorEnv[Any, Any, Any]]]:
    """This rank's groups of `size` environments; closed on leaving."""
    if backend.name == "async":
        workers.preload("hogwild_rl.runs.session")  # or every process would import torch
    firsts = [(rank * config.env_groups + group) * size for group in range(config.env_groups)]
    numbers = range(firsts[0], firsts[-1] + size)
    failed = crew.replaced(session, numbers, config, config.n_steps)
    with contextlib.ExitStack() as opened:
        groups = []
        for first in firsts:
            envs = backends.make(
                session.facts.source,
                backend,
                size,
                settings.usable_cores(),
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
    memory.keep_freed()
    ranks = Ranks.here()
    session = Session("a2c", config, reports=ranks.index == 0)
    model = config.model(session.facts)
    device = devices.choose(config.device, model, ranks.local)
    bfloat16 = devices.bfloat16(config.precision, session.facts, device.device.type)
    if bfloat16.on:  # what pays depends on the device, and that on the model's size
        model = config.model(session.facts, bfloat16=True)
    if config.compile and device.device.type != "cuda":
        raise UserError("compile records CUDA graphs, and this run is on the CPU: leave it out")
    backend = backends.choose(
        session.facts.source,
        config.vectorization,
        group_size(config, ranks),
        settings.usable_cores(),
    )
    config.check_rollouts(session.facts, config.num_envs // ranks.count)
    if backend.name == "async":
        machine.check_environments(config.num_envs // ranks.count)
    shared = SharedModel(model, device.device)
    optimizer = SharedRMSprop(shared, config.learning_rate, config.rms_alpha, config.rms_eps)
    normalization = config.normalization(session.facts, ranks.count)
    slots = Slots(1)
    left: dict[str, Any] | None = None
    with (
        devices.few_threads(model, config.num_envs),
        ranks.joined(device.device),
        session.interruptible(),
    ):
        session.open(shared.module, optimizer, normalization)
        session.tell(f"device {device.device}: {device.reason}")
        session.tell(f"vectorization {backend.name}: {backend.reason}")
        if bfloat16.reason:
            session.tell(f"precision float32: {bfloat16.reason}")
        try:
            left = learn(config, session, shared, optimizer, normalization, slots, ranks, backend)
        finally:
            agent = session.close(slots, left is None, lambda: left)
    return agent


def main() -> None:
    """The command line: ``python -m hogwild_rl.a2c --help``."""
    train(cli.parse(Config, "a2c", "Synchronous advantage actor-critic, batched on one device."))


if __name__ == "__main__":
    cli.run(main)
