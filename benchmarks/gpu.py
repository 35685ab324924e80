"""Throughput of A2C with an Atari-sized CNN on a GPU: eager, recorded, bfloat16, two groups.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --envs pictures:Pictures-v0 --num-envs 64 --device cpu

Every cell stands beside the raw rate of the same environments with random actions, taken in the
same visit: free ones that only show pictures, and ALE's, where it is installed. Cells are visited
in turn, `repeats` times; medians are reported.
"""

import dataclasses
import statistics
from typing import Any

import machine
import throughput
import torch
import tyro

from hogwild_rl.envs import atari

_MODES: dict[str, dict[str, Any]] = {
    "eager": {},
    "compiled": {"compile": True},
    "bfloat16": {"precision": "bfloat16"},
    "compiled bfloat16": {"compile": True, "precision": "bfloat16"},
    "compiled bfloat16, two groups": {"compile": True, "precision": "bfloat16", "env_groups": 2},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure."""

    envs: tuple[str, ...] = ("pictures:Pictures-v0", "PongNoFrameskip-v4")
    """Environment ids; those that are not installed are left out."""
    num_envs: tuple[int, ...] = (64, 128, 256, 512)
    """Environments that step together."""
    n_steps: int = 20
    """Steps between updates."""
    device: str = "cuda"
    """On the CPU nothing is recorded."""
    seconds: float = 5.0
    """Length of one measurement, about."""
    repeats: int = 2
    """How often each cell is visited."""
    write: bool = True
    """Write benchmarks/results/gpu.csv."""


def main() -> None:
    """Visits all cells in turn, prints and writes the medians."""
    config = tyro.cli(Config, description=__doc__)
    on_gpu = config.device == "cuda"
    print(machine.describe(), torch.cuda.get_device_name() if on_gpu else "")
    rows: list[dict[str, Any]] = []
    for env in config.envs:
        if "NoFrameskip" in env and not atari.installed():
            continue
        settings = throughput.Config(
            env=env, algorithm="a2c", n_steps=config.n_steps, seconds=config.seconds
        )
        cells = [
            (mode, {"num_envs": n, "vectorization": "native", "device": config.device, **flags})
            for n in config.num_envs
            for mode, flags in _MODES.items()
            if on_gpu or "compile" not in flags
        ]
        visits = [
            [throughput.measure(settings, cell) for _, cell in cells] for _ in range(config.repeats)
        ]
        for (mode, cell), runs in zip(cells, zip(*visits, strict=True), strict=True):
            medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            rate, raw = medians["steps_per_s"], medians["raw_steps_per_s"]
            print(
                f"{env}, {cell['num_envs']} environments, {mode}: {rate:,.0f} steps/s, "
                f"raw {raw:,.0f}, {rate / raw:.0%}"
            )
            rows.append(
                {
                    "env": env,
                    "num_envs": cell["num_envs"],
                    "mode": mode,
                    **{name: round(value, 3) for name, value in medians.items()},
                }
            )
    if config.write:
        print(f"written: {machine.write_csv('gpu', rows)}")


if __name__ == "__main__":
    main()
