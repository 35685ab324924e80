"""Cost of pull, clip and optimizer step, compared with torch.optim on the same parameters.

    python benchmarks/update_cost.py

One thread, for a small MLP (5 k parameters) and the Nature CNN (1.7 M). Pull, clip and a step of
SharedRMSprop on the flat tensor are compared with copies, clip_grad_norm_ and torch.optim.RMSprop
on the module's tensors. The operations are timed in turn; medians are reported.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import machine
import torch
import tyro
from torch import nn

from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.shared_model import SharedModel, clip_by_global_norm_

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: nn.Sequential(
        nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3)
    ),
    "nature cnn": lambda: nn.Sequential(
        nn.Conv2d(4, 32, 8, 4),
        nn.Conv2d(32, 64, 4, 2),
        nn.Conv2d(64, 64, 3, 1),
        nn.Linear(3136, 512),
        nn.Linear(512, 19),
    ),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the measurement."""

    rounds: int = 200
    """Number of measurements of each operation."""


def microseconds(operations: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median time of each operation; the operations are measured in turn."""
    times: dict[str, list[float]] = {name: [] for name in operations}
    for _ in range(rounds):
        for name, operation in operations.items():
            start_s = time.perf_counter()
            operation()
            times[name].append(time.perf_counter() - start_s)
    return {name: statistics.median(values) * 1e6 for name, values in times.items()}


def measure(network: Callable[[], nn.Module], rounds: int) -> dict[str, float]:
    """Times all operations on one network."""
    shared = SharedModel(network())
    replica = shared.replica()
    optimizer = SharedRMSprop(shared)
    gradient = torch.randn_like(shared.parameter)
    module = network()
    torch_optimizer = torch.optim.RMSprop(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)

    def pull_tensors() -> None:
        with torch.no_grad():
            for target, origin in zip(module.parameters(), shared.module.parameters(), strict=True):
                target.copy_(origin)

    return microseconds(
        {
            "pull": replica.pull,
            "clip": lambda: clip_by_global_norm_(gradient, 1e9),
            "step": lambda: optimizer.apply(gradient),
            "torch pull": pull_tensors,
            "torch clip": lambda: nn.utils.clip_grad_norm_(module.parameters(), 1e9),
            "torch step": torch_optimizer.step,
        },
        rounds,
    )


def main() -> None:
    """Measures both networks; prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    torch.set_num_threads(1)
    print(f"{machine.describe()}, one thread")
    rows = []
    for name, network in NETWORKS.items():
        count = sum(p.numel() for p in network().parameters())
        medians = measure(network, config.rounds)
        rows.append({"network": name, "parameters": count, **medians})
        print(f"{name}, {count:,} parameters, microseconds:")
        for operation in ("pull", "clip", "step"):
            flat, tensors = medians[operation], medians[f"torch {operation}"]
            print(
                f"  {operation:5} {flat:9.1f}   torch {tensors:9.1f}   {tensors / flat:.1f} times"
            )
    rounded = [
        {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    print(f"written: {machine.write_csv('update_cost', rounded)}")


if __name__ == "__main__":
    main()
