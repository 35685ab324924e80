"""On-policy learner: pulls the shared parameters and updates them with a gradient."""

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hogwild_rl.collect.rollout import Rollout
from hogwild_rl.envs import make
from hogwild_rl.hogwild.counters import CounterWriter
from hogwild_rl.hogwild.processes import Worker
from hogwild_rl.hogwild.shared_model import Replica, clip_by_global_norm_
from hogwild_rl.learn import cuda_graphs
from hogwild_rl.learn.closed_form import ClosedForm
from hogwild_rl.learn.importance import ActedRollout, weighted_actor_critic_loss
from hogwild_rl.learn.losses import PolicyLoss
from hogwild_rl.learn.samples import Samples
from hogwild_rl.models.actor_critic import ActorCritic
from hogwild_rl.training.task import Task

_LOG_EVERY_S = 0.25  # the gauges of 64 environments and 20 steps take 230 µs

Loss: TypeAlias = Callable[[ActorCritic, Any, Any], PolicyLoss]


class Learner:
    """One worker's access to the shared parameters.

        pull    θ' ← θ
        step    θ ← θ − η RMSprop(clip(∇ L(θ')))        without a lock

    Args:
        worker, task: this worker, and the run.
        loss: loss function of model, rollout and settings.
        replica: compute with a local copy θ', updated by `pull`, instead of θ.

    Attributes:
        model, device: network that acts and is trained, and the device of its parameters.
        closed_form: gradients and actions of the model without autograd; None if not supported.
        losses: terms of the newest loss that was computed; in closed form, for the log only.
        counters: counters of this worker.
        collector: source of the rollouts, set by `Collector`.
    """

    collector: Any
    losses: PolicyLoss

    def __init__(
        self, worker: Worker, task: Task[Any], loss: Loss, *, replica: bool = False
    ) -> None:
        state = task.state
        self._config, self._optimizer, self._loss = task.config, state.optimizer, loss
        self._ranks, self._to_capture = task.ranks, task.compiled
        self._source = state.model.replica() if replica else state.model
        self.model: ActorCritic = self._source.module
        self.device = state.model.flat.device
        # Each rank has its own counters, with one row.
        self.counters = state.counters.writer(worker.index if len(state.counters) > 1 else 0)
        self._outcomes = Outcomes(self.counters, self.device)
        self._updates_at_pull: int | None = None
        self._stale_steps, self._pulls_late = None, replica and task.config.pulls_late
        if self._pulls_late:
            self._loss = weighted_actor_critic_loss
        if replica:
            self._stale_steps = task.config.stale_steps(
                state.optimizer,
                pulled=self._source.flat[: len(state.model.parameter)],
                total_updates=self.counters.total_updates,
                dropped=functools.partial(self.counters.add_dropped, stale=True),
                workers=len(state.counters),
            )
        supported = ClosedForm.supports(self.model)
        self.closed_form = ClosedForm(self.model, self._source.gradient.flat) if supported else None
        # On a GPU both are replaced by CUDA graphs at the first update.
        self._gradient: Callable[[], Tensor] = self._compute_gradient
        self._device_step: Callable[[], Tensor] = self._step_if_finite

    def pull(self) -> None:
        """Copies the shared parameters to the replica, if any; others may write them meanwhile."""
        if isinstance(self._source, Replica):
            self._updates_at_pull = self.counters.total_updates()
            self._source.pull()

    def step(self, rollout: Rollout | Samples, progress: float) -> None:
        """Updates the shared parameters with the gradient of a rollout's loss.

        gradient → average over ranks → clip → check finite → learning rate → apply → count

        Args:
            rollout: rollout or minibatch; in the same buffers in every call if the gradient is
                captured.
            progress: fraction of the run in [0, 1), for the learning rate.
        """
        if self._pulls_late and isinstance(rollout, Rollout):
            rollout = ActedRollout.of(self.model, rollout)
            self.pull()
        self._rollout = rollout
        self._logging = self._log_is_due and not isinstance(rollout, Samples)
        if self._to_capture:
            self._capture()
        gradient = self._gradient()
        steps, episodes = self.collector.take()  # on the host, while a GPU computes the gradient
        if self._ranks.count > 1:
            steps, episodes = self._ranks.combine(gradient, steps, episodes)
        self.counters.add_rollout(steps, episodes)
        self._optimizer.learning_rate = learning_rate = self._config.learning_rate_at(progress)
        self.counters.lap("learn")
        norm: float | Tensor
        applied, updates_at_pull = True, self._updates_at_pull
        if self.device.type != "cpu":
            norm = self._device_step()
        elif math.isfinite(norm := clip_by_global_norm_(gradient, self._config.max_grad_norm)):
            if self._stale_steps is None:
                self._optimizer.apply(gradient)
            else:
                updates_at_pull = self._stale_steps.apply(gradient, updates_at_pull or 0)
                applied = updates_at_pull is not None
        if applied:
            self._outcomes.add(norm, updates_at_pull)
        self.counters.lap("share")
        if self._logging:
            self._outcomes.log(self.losses.gauges(), learning_rate)

    def log(self, samples: Samples) -> None:
        """Logs the terms of the loss of PPO after the updates with a rollout, if due.

        At the first minibatch of each rollout, π = π_old.
        """
        if self._log_is_due:
            self._outcomes.log(self.loss_of(samples).gauges(), self._optimizer.learning_rate)

    @property
    def _log_is_due(self) -> bool:
        return time.monotonic() >= self._outcomes.due_s

    @torch.no_grad()
    def loss_of(self, rollout: Rollout | Samples) -> PolicyLoss:
        """Terms of the loss, without gradient."""
        return self._loss(self.model, rollout, self._config)

    def drop(self) -> None:
        """Counts the last rollout, and one dropped update instead of those of its minibatches."""
        self.counters.add_rollout(*self.collector.take())
        self._outcomes.add(math.nan)

    def finish(self) -> None:
        """Counts the last update of a GPU and the episodes of the other ranks."""
        self._outcomes.finish()
        self.counters.add_rollout(0, self._ranks.gather())

    def _compute_gradient(self) -> Tensor:
        arguments: tuple[Any, Any] = (self._rollout, self._config)
        if self.closed_form is None:
            self.losses = self._loss(self.model, *arguments)
            gradient: Tensor = self._source.gradient(self.losses.total)
            return gradient
        gradient = self.closed_form.gradient(self._loss, *arguments)
        if self.closed_form.losses is not None:
            self.losses = self.closed_form.losses
        elif self._logging:  # only the log needs the terms of the loss
            self.losses = self.loss_of(self._rollout)
        return gradient

    def _step_if_finite(self) -> Tensor:
        taken: Tensor = self._optimizer.apply_if_finite(
            self._source.gradient.flat, self._config.max_grad_norm
        )
        return taken

    def _capture(self) -> None:
        self._to_capture, device = False, self.device
        with cuda_graphs.recording(make.name_of(self._config.network)):
            self._gradient = cuda_graphs.Captured(self._compute_gradient, device)
            self._device_step = cuda_graphs.Captured(
                self._step_if_finite, device, changes=self._optimizer.tensors
            )


class Outcomes:
    """Counts a worker's updates, and logs their gauges every 0.25 s.

    An update on a device is counted one update late, after the host has waited for another reason.

    Attributes:
        norm: gradient norm of the last counted update; NaN before the first.
        due_s: time of `time.monotonic` from which the gauges are due.
    """

    def __init__(self, counters: CounterWriter, device: torch.device) -> None:
        self._counters, self.norm, self.due_s = counters, math.nan, 0.0
        self._host = torch.zeros((), pin_memory=device.type == "cuda")
        self._device: Tensor | None = None

    def add(self, norm: float | Tensor, updates_at_pull: int | None = None) -> None:
        """Counts this update, or the previous one on a device, for which the host has waited.

        Args:
            norm: gradient norm, a float or [] on the device; not finite if no step was taken.
            updates_at_pull: updates of all workers when the parameters were pulled; None: now.
        """
        if isinstance(norm, Tensor):
            first, self._device, previous = self._device is None, norm, float(self._host)
            self._host.copy_(norm, non_blocking=True)
            if first:
                return
            norm, updates_at_pull = previous, None
        self.norm = norm
        if math.isfinite(norm):
            self._counters.add_update(updates_at_pull)
        else:
            self._counters.add_dropped()

    def log(self, gauges: Sequence[float], learning_rate: float) -> None:
        """Sets this worker's gauges: those given, gradient norm and learning rate."""
        self.due_s = time.monotonic() + _LOG_EVERY_S
        self._counters.set_gauges([*gauges, self.norm, learning_rate])

    def finish(self) -> None:
        """Waits for the last update on a device and counts it."""
        if self._device is not None:
            norm, self._device = float(self._device), None
            self.add(norm)
