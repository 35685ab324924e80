"""Settings of PPO."""

import dataclasses
from typing import Literal

from hogwild_rl.config import base, validation
from hogwild_rl.config.policy import LockFreeConfig
from hogwild_rl.envs import vectorize
from hogwild_rl.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(LockFreeConfig, base.DeviceConfig):
    """Settings of PPO in one process, or with lock-free workers."""

    workers: int = 0
    """Lock-free worker processes on the CPU; 0: one process, on the CPU or a GPU."""
    num_envs: int = 8
    """Environments stepped as one batch; auto of envs_per_worker divides them among workers."""
    envs_per_worker: Literal["auto"] | int = "auto"
    """With workers: environments that each steps as a batch; auto: its share of num_envs."""
    vectorization: vectorize.Vectorization = "auto"
    """Backend of the environments: native, sync, async (a process each) or envpool."""
    n_steps: int = 128
    """Rollout length T: steps of each environment between updates."""
    epochs: int = 4
    """Epochs K per rollout."""
    batch_size: int = 256
    """Transitions of a minibatch, at most those of a rollout."""
    clip_range: float = 0.2
    """ε: ratios are clipped to 1 − ε..1 + ε."""
    clip_value_range: float = 0.0
    """Largest change of a value that lowers its loss; 0: no limit."""
    normalize_advantages: bool = True
    """Standardize the advantages of each minibatch."""
    target_kl: float = 0.0
    """End the epochs of a rollout when KL(π_old || π) exceeds this; 0: never."""
    learning_rate: float = 3e-4
    """Learning rate η."""
    optimizer: Literal["rmsprop", "adam", "sgd"] = "adam"
    """Optimizer, with statistics that all workers share."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("workers", 0), ("num_envs", 1), ("epochs", 1), ("batch_size", 1)):
            validation.at_least(name, getattr(self, name), least)
        validation.above("clip_range", self.clip_range, 0)
        for name in ("clip_value_range", "target_kl"):
            validation.between(name, getattr(self, name), 0, 1e9)
        if self.envs_per_worker != "auto":
            validation.at_least("envs_per_worker", self.envs_per_worker, 1)
            if not self.workers:
                raise UserError("envs_per_worker needs workers: give num_envs, or workers")
        if self.workers and (self.device == "cuda" or self.compile is True):
            raise UserError("workers share memory on the CPU: leave out device and compile")
        if not self.workers and (self.staleness != "ignore" or self.artificial_delay):
            raise UserError(
                "one process has no stale gradients: give workers, or leave staleness out"
            )
        if self.pulls_late:
            raise UserError(
                "PPO pulls before each minibatch and corrects by its ratio: leave out staleness "
                f"{self.staleness}"
            )
        if self.workers and self.vectorization == "async":
            raise UserError("vectorization async is for workers 0: each worker is a process")
        steps = self.n_steps * self.envs_of_worker
        if (self.envs_of_worker if self.lstm else steps) % self.minibatches:
            kind = "minibatches of whole environments" if self.lstm else "minibatches of equal size"
            raise UserError(
                f"batch_size {self.batch_size} does not divide the {steps} steps of a rollout into "
                f"{kind}: change it, n_steps or the number of environments"
            )

    @property
    def minibatches(self) -> int:
        """Minibatches M of each epoch."""
        return max(1, self.n_steps * self.envs_of_worker // self.batch_size)

    @property
    def envs_of_worker(self) -> int:
        """Environments of each worker, or of the only process."""
        if self.envs_per_worker == "auto":
            return max(1, self.num_envs // max(1, self.workers))
        return self.envs_per_worker
