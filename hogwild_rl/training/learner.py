"""Actor, critics, target networks and optimizers of an off-policy learner."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from hogwild_rl.collect.replay import Transitions
from hogwild_rl.hogwild.optimizers import SharedAdam
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.models.deterministic import WithTarget, polyak_update_


class TargetedModule:
    """The policy or the critics of all workers, with their slow copy and their optimizer.

    Args:
        tracked: in place; from now on a view of one flat tensor.
        learning_rate: η of Adam.
        device: where the tensor lies.
        alone: a single worker learns; see SharedAdam.

    Attributes:
        optimizer: of what is trained.
    """

    def __init__(
        self, tracked: WithTarget[Any], learning_rate: float, device: torch.device, alone: bool
    ) -> None:
        self._shared = SharedModel(tracked, device)
        self.optimizer = SharedAdam(self._shared, learning_rate, alone=alone)

    @property
    def online(self) -> Any:
        """The module that is trained."""
        return self._shared.module.online

    @property
    def target(self) -> Any:
        """Its slow copy."""
        return self._shared.module.target

    def step(self, loss: Tensor) -> bool | Tensor:
        """One gradient step, taken where the gradient is finite.

        Returns:
            Whether it was taken; on a device a bool tensor [] there, and the host does not wait.
        """
        gradient = self._shared.gradient(loss)
        if gradient.device.type != "cpu":
            return self.optimizer.apply_if_finite(gradient)
        if not math.isfinite(float(gradient.dot(gradient))):
            return False
        self.optimizer.apply(gradient)
        return True

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor that an update changes."""
        return [self._shared.flat, *self.optimizer.tensors]

    def polyak_update(self, tau: float) -> None:
        """Lets the slow copy follow by a share τ."""
        polyak_update_(self._shared.flat, tau)


@dataclasses.dataclass
class Learner:
    """What one worker learns with. Workers read and write the same parameters, without a lock.

    Attributes:
        actor: μ.
        critics: the Q_i.
        generator: for what an update draws.
        updates: that this worker has taken.
    """

    actor: TargetedModule
    critics: TargetedModule
    generator: torch.Generator
    updates: int = 0


Update: TypeAlias = Callable[[Learner, Transitions, Any], bool | Tensor]
"""One update with a batch, under the algorithm's settings; False where a step was dropped."""


class Optimizers:
    """Both parts' optimizers as one, for checkpoints."""

    def __init__(self, actor: TargetedModule, critics: TargetedModule) -> None:
        self._each = {"actor": actor.optimizer, "critics": critics.optimizer}

    def state_dict(self) -> dict[str, Any]:
        """As torch's, by part."""
        return {name: optimizer.state_dict() for name, optimizer in self._each.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, by part."""
        for name, optimizer in self._each.items():
            learning_rate = optimizer.learning_rate
            optimizer.load_state_dict(state_dict[name])
            optimizer.learning_rate = learning_rate  # settings decide, not the checkpoint
