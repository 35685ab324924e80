"""Correctness checks and timings of A2C and TD3 on a GPU, and of A3C on the CPU cores.

    bash benchmarks/gpu_check.sh                 # all parts on a GPU, about 8 minutes
    python benchmarks/gpu_check.py --parts gradients ale
    python benchmarks/gpu_check.py --dry         # all parts on the CPU, tiny sizes
    python benchmarks/gpu_check.py --table benchmarks/results/gpu_check.csv

Every number is appended to gpu_check.csv, in $OUT or benchmarks/results, as soon as it is measured,
so that a later failure loses no results. `--table` prints the rows as Markdown tables.
"""

import contextlib
import csv
import dataclasses
import functools
import itertools
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import machine
import numpy as np
import pictures
import throughput
import torch
import tyro
from gymnasium import spaces

from hogwild_rl import a2c, ppo, td3
from hogwild_rl.collect.rollout import Act, Collector, Rollout
from hogwild_rl.envs import atari
from hogwild_rl.envs.codecs import ActionCodec, EnvCodec, ObservationCodec
from hogwild_rl.hogwild import shared_memory
from hogwild_rl.hogwild.optimizers import SharedRMSprop
from hogwild_rl.hogwild.shared_model import SharedModel
from hogwild_rl.learn import cuda_graphs, losses
from hogwild_rl.models.actor_critic import ActorCritic, Architecture
from hogwild_rl.training import off_policy

PONG = "PongNoFrameskip-v4"
SPACE, ACTIONS = spaces.Box(0, 255, (4, 84, 84), np.uint8), spaces.Discrete(6)
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "a3c": {},
    "a3c, normalized": {"standardize": True},
    "a3c, bfloat16": {"standardize": True, "bfloat16": True},
    "a3c, LSTM": {"lstm": 64, "standardize": True},
    "nature": {"network": "nature"},
}
FIELDS = ("part", "name", "metric", "value")


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the GPU check."""

    parts: tuple[str, ...] = (
        *("machine", "gradients", "kernels", "ale", "profile", "pictures"),
        *("resume", "cartpole", "td3", "a3c"),
    )
    """Parts to run, in this order."""
    dry: bool = False
    """Use tiny sizes, on the CPU and without CUDA graphs."""
    num_envs: int = 256
    """Number of ALE environments."""
    seconds: float = 6.0
    """Duration of one training measurement."""
    table: str | None = None
    """Only print the rows of this CSV file as tables."""


class Check:
    """Parts of the check, as methods that write the rows of the CSV file.

    Attributes:
        device: device of the learner.
        seconds: duration of a measurement.
    """

    def __init__(self, config: Config, out: pathlib.Path) -> None:
        self.dry, self.num_envs = config.dry, 4 if config.dry else config.num_envs
        self.seconds = 0.6 if config.dry else config.seconds
        self.device = torch.device("cpu" if config.dry else "cuda:0")
        self.out, self._start_s = out, time.monotonic()
        self._path = out / "gpu_check.csv"
        if not self._path.exists():
            self._path.write_text(",".join(FIELDS) + "\n")

    def row(self, part: str, name: str, **metrics: Any) -> None:
        """Prints measurements and appends them to the CSV file."""
        shown = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in metrics.items()}
        words = " ".join(f"{metric}={value}" for metric, value in shown.items())
        print(f"[{time.monotonic() - self._start_s:5.1f} s] {part}: {name}: {words}", flush=True)
        with self._path.open("a", newline="") as file:
            csv.writer(file).writerows((part, name, *each) for each in shown.items())

    def run(self, part: str) -> bool:
        """Runs a part and returns False if it failed, so that the other parts still run."""
        try:
            getattr(self, f"part_{part}")()
        except Exception:  # any failure on an unknown machine
            traceback.print_exc()
            return False
        return True

    def wait(self) -> None:
        """Waits until the GPU is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def median_ms(self, function: Callable[[], Any], repeats: int = 50) -> float:
        """Median duration of a call in milliseconds, including the GPU's work."""
        times = []
        for number in range(3 if self.dry else 5 + repeats):
            start_s = time.perf_counter()
            function()
            self.wait()
            if number >= 5 or self.dry:
                times.append(time.perf_counter() - start_s)
        return 1e3 * statistics.median(times)

    def model(self, name: str, device: torch.device | None = None) -> SharedModel[ActorCritic]:
        """Actor-critic for Atari, with the same parameters in every call."""
        generator, architecture = torch.Generator().manual_seed(0), ARCHITECTURES[name]
        module = ActorCritic(SPACE, ACTIONS, Architecture(**architecture), generator)
        shared = SharedModel(module, device or self.device)
        if isinstance(shared.module.standardize, torch.nn.Module):
            shared.module.standardize.mean.data.fill_(100.0)
            shared.module.standardize.scale.data.fill_(1 / 50)
        return shared

    def rollout(
        self, name: str, T: int, B: int, seed: int = 0, device: torch.device | None = None
    ) -> Rollout:
        """Rollout of random numbers."""
        random, lstm = torch.Generator().manual_seed(seed), ARCHITECTURES[name].get("lstm", 0)
        flags = [torch.rand(T, B, generator=random) < p for p in (0.03, 0.03, 0.95)]
        fields = {
            "observations": torch.randint(
                0, 256, (T + 1, B, *SPACE.shape), dtype=torch.uint8, generator=random
            ),
            "state": 0.1 * torch.randn(2, B, lstm, generator=random),
            "actions": torch.randint(0, 6, (T, B), generator=random),
            "rewards": torch.randn(T, B, generator=random),
            **dict(zip(("terminated", "truncated", "valid"), flags, strict=True)),
        }
        return Rollout(**{n: t.to(device or self.device) for n, t in fields.items()})

    # ---------------------------------------------------------------------------------- correctness

    def part_machine(self) -> None:
        """Records the GPU, the processor and the versions."""
        query = "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max"
        command = ("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader")
        card = "none"
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            card = done.stdout.strip().replace(",", ";")
        self.row("machine", "card", value=card)
        self.row("machine", "host", value=machine.describe().replace(",", ";"))
        self.row("machine", "cudnn", value=torch.backends.cudnn.version(), os=platform.platform())

    def part_gradients(self) -> None:
        """Compares gradients on CPU and GPU, and gradients and actions captured and eager."""
        T, B = (3, 4) if self.dry else (8, 16)
        cpu, config = torch.device("cpu"), a2c.Config()
        tf32 = torch.backends.cudnn.allow_tf32
        for name in ARCHITECTURES:
            gradients = []
            for device, allow in ((cpu, False), (self.device, False), (self.device, tf32)):
                torch.backends.cudnn.allow_tf32 = allow
                shared, rollout = self.model(name, device), self.rollout(name, T, B, device=device)
                loss = losses.actor_critic_loss(shared.module, rollout, config).total
                gradients.append(shared.gradient(loss).cpu().double())
            norm = float(gradients[0].norm())
            errors = [float((each - gradients[0]).norm()) / norm for each in gradients[1:]]
            self.row("gradients", name, norm=norm, error_float32=errors[0], error_tf32=errors[1])
            if self.device.type == "cuda":
                self._captured_against_eager(name, T, B, config)

    def _captured_against_eager(self, name: str, T: int, B: int, config: a2c.Config) -> None:
        shared, static = self.model(name), self.rollout(name, T, B)
        optimizer, worst = SharedRMSprop(shared, 1e-3), 0.0

        def gradient() -> torch.Tensor:
            return shared.gradient(losses.actor_critic_loss(shared.module, static, config).total)

        captured = cuda_graphs.Captured(gradient, self.device)
        step = cuda_graphs.Captured(
            lambda: optimizer.apply_if_finite(shared.gradient.flat, 0.5),
            self.device,
            changes=optimizer.tensors,
        )
        for seed in range(1, 6):
            for field, tensor in vars(self.rollout(name, T, B, seed)).items():
                getattr(static, field).copy_(tensor)
            one = captured().clone()
            other = gradient()
            worst = max(worst, float((one - other).norm() / other.norm()))
            assert bool(step().isfinite())
        streams = [torch.Generator(self.device).manual_seed(1) for _ in range(2)]
        act = [functools.partial(shared.module.act, generator=stream) for stream in streams]
        replayed, differ = cuda_graphs.captured_act(act[1], static, B, streams[1]), 0
        with torch.inference_mode():
            for number in range(40):
                observations = static.observations[number % T]
                actions = [each(observations, static.state)[0] for each in (act[0], replayed)]
                differ += int((actions[0] != actions[1]).sum())
        equal = bool(torch.equal(streams[0].get_state(), streams[1].get_state()))
        self.row(
            "gradients",
            f"{name}, captured",
            error=worst,
            actions_differ=differ,
            streams_equal=equal,
        )

    def part_resume(self) -> None:
        """Resumes runs on the other device."""
        steps = 3_000 if self.dry else 20_000
        cpu = torch.device("cpu")
        with tempfile.TemporaryDirectory() as folder:
            for number, (first, second) in enumerate(((self.device, cpu), (cpu, self.device))):
                run = f"{folder}/{number}"
                flags = {"env": "CartPole-v1", "vectorization": "sync", "device": first.type}
                settings = {"num_envs": 16, "total_timesteps": steps, "quiet": True}
                a2c.train(a2c.Config(run_dir=run, **flags, **settings))
                device = {"device": second.type, "total_timesteps": 2 * steps}
                counters = a2c.train(a2c.Config(resume=run, **device)).checkpoint.counters
                name = f"{first.type}, then {second.type}"
                self.row("resume", name, steps=counters.steps, dropped=counters.dropped)

    def part_cartpole(self) -> None:
        """Solves CartPole-v1 on the device with A2C and PPO, eager and captured."""
        steps = 5_000 if self.dry else 600_000
        captures = (False,) if self.dry else (False, True)
        programs: tuple[Any, ...] = (a2c, ppo)
        for program, compiled in itertools.product(programs, captures):
            with tempfile.TemporaryDirectory() as folder:
                agent = program.train(
                    program.Config(
                        env="CartPole-v1",
                        device=self.device.type,
                        compile=compiled,
                        total_timesteps=steps,
                        stop_when_solved=True,
                        run_dir=f"{folder}/run",
                        quiet=True,
                    )
                )
                counters = agent.checkpoint.counters
                self.row(
                    "cartpole",
                    f"{agent.checkpoint.algorithm}, {'captured' if compiled else 'eager'}",
                    steps=counters.steps,
                    seconds=counters.elapsed_s,
                    greedy_return=float(agent.evaluate(2 if self.dry else 10).mean()),
                )

    # --------------------------------------------------------------------------------------- speed

    def part_kernels(self) -> None:
        """Times copies, acting, gradients and optimizer steps, in milliseconds."""
        for B in (4,) if self.dry else (128, 256, 512):
            self._copies(B)
        for name in ("a3c, normalized", "a3c, bfloat16"):
            for B in (4,) if self.dry else (16, 128, 256, 512):
                self._acting(name, B)
        sizes = [("a3c, normalized", 256), ("a3c, bfloat16", 16), ("a3c, bfloat16", 256)]
        for name, B in [*sizes, ("a3c, LSTM", 128), ("nature", 256)]:
            self._learning(name, T=5, B=2 if self.dry else B)

    def _copies(self, B: int) -> None:
        random = np.random.default_rng(0)
        source = random.integers(0, 256, (B, *SPACE.shape), dtype=np.uint8)
        shape, on_gpu = (21, B, *SPACE.shape), self.device.type == "cuda"
        pinned = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu)
        target, array = torch.zeros(shape, dtype=torch.uint8, device=self.device), pinned.numpy()
        self.row(
            "kernels",
            f"copies of {B} observations",
            numpy_ms=self.median_ms(lambda: np.copyto(array[7], source)),
            torch_ms=self.median_ms(lambda: pinned[7].copy_(torch.from_numpy(source))),
            to_device_ms=self.median_ms(lambda: target[7].copy_(pinned[7], non_blocking=True)),
            pageable_ms=self.median_ms(lambda: target[7].copy_(torch.from_numpy(source))),
        )

    def _acting(self, name: str, B: int) -> None:
        shared, static = self.model(name), self.rollout(name, 1, B)
        generator = torch.Generator(self.device).manual_seed(0)
        act = functools.partial(shared.module.act, generator=generator)
        times = {}

        def actions(policy: Act) -> Any:
            return policy(static.observations[0], static.state)[0].cpu()

        with torch.inference_mode():
            times["eager_ms"] = self.median_ms(functools.partial(actions, act))
        if self.device.type == "cuda":
            replayed = cuda_graphs.captured_act(act, static, B, generator)
            with torch.inference_mode():
                times["captured_ms"] = self.median_ms(functools.partial(actions, replayed))
        self.row("kernels", f"acting, {name}, {B} environments", **times)

    def _learning(self, name: str, T: int, B: int) -> None:
        shared, static, config = self.model(name), self.rollout(name, T, B), a2c.Config()
        optimizer = SharedRMSprop(shared, 1e-4)

        def gradient() -> torch.Tensor:
            return shared.gradient(losses.actor_critic_loss(shared.module, static, config).total)

        def step() -> torch.Tensor:
            return optimizer.apply_if_finite(shared.gradient.flat, 0.5)

        times = {"eager_ms": self.median_ms(gradient, 15), "step_eager_ms": self.median_ms(step)}
        if self.device.type == "cuda":
            times["captured_ms"] = self.median_ms(cuda_graphs.Captured(gradient, self.device), 15)
            captured = cuda_graphs.Captured(step, self.device, changes=optimizer.tensors)
            times["step_captured_ms"] = self.median_ms(captured)
            times["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        self.row("kernels", f"gradient, {name}, {T} steps of {B}", **times)

    def part_ale(self) -> None:
        """Times ALE environments alone and in training; each set of them is created once."""
        if not atari.installed():
            return
        N = self.num_envs
        modes: dict[str, dict[str, Any]] = {"eager": {"compile": False, "precision": "float32"}}
        modes["eager, bfloat16"] = {"compile": False, "precision": "bfloat16"}
        modes["captured, bfloat16"] = {"compile": True, "precision": "bfloat16"}
        names = list(modes)[: 2 if self.dry else 3]
        small = 2 if self.dry else 16
        for num_envs, groups, tested in (
            (N, 2, names[-1:]),
            (N, 1, names),
            (small, 1, names[-1:]),
        ):
            for name in tested:
                self._time_training("ale", PONG, num_envs, groups, name, modes[name])
            throughput.close_environments()

    def part_pictures(self) -> None:
        """Times acting, learning and copying alone, with environments of negligible cost."""
        env = "pictures:Pictures-v0"
        for num_envs in (4,) if self.dry else (256, 512):
            for name, compiled in (("eager", False), ("captured", True))[: 1 if self.dry else 2]:
                flags = {"compile": compiled, "precision": "bfloat16"}
                self._time_training("pictures", env, num_envs, 1, f"{name}, bfloat16", flags)
        throughput.close_environments()

    def _time_training(
        self, part: str, env: str, num_envs: int, groups: int, mode: str, flags: dict[str, Any]
    ) -> None:
        start_s = time.monotonic()
        rates = throughput.training_rates(
            a2c,
            self.seconds,
            env=env,
            num_envs=num_envs,
            env_groups=groups,
            n_steps=5,
            vectorization="native",
            device=self.device.type,
            normalize_observations=True,
            **flags,
        )
        spent_s = time.monotonic() - start_s
        raw = throughput.raw_rate(throughput.last_used_environments(), self.seconds / 2)
        self.row(
            part,
            f"{num_envs} environments in {groups} group{'s' * (groups > 1)}, {mode}",
            steps_per_s=round(rates["steps_per_s"]),
            raw_steps_per_s=round(raw),
            share=rates["steps_per_s"] / raw,
            started_in_s=spent_s - self.seconds,
            **{f"{p}_share": rates[f"{p}_share"] for p in ("env", "act", "learn")},
        )

    def part_td3(self) -> None:
        """Times TD3 on the CPU by number of threads, and on the GPU captured and eager."""
        threads = (1, 2) if self.dry else (1, 2, 4, 8, 16)
        cells = {f"cpu, {n} thread{'s' * (n > 1)}": ("cpu", "auto", n) for n in threads}
        if not self.dry:
            cells |= {"gpu": ("cuda", "auto", 1), "gpu, eager": ("cuda", False, 1)}
        steps, warm = (250, 100) if self.dry else (1_200, 200)
        for name, (device, compiled, count) in cells.items():
            torch.set_num_threads(count)
            off_policy._MOST_THREADS = count
            with tempfile.TemporaryDirectory() as folder:
                config = td3.Config(
                    env="Pendulum-v1",
                    device=device,
                    compile=compiled,
                    total_timesteps=steps,
                    learning_starts=warm,
                    batch_size=32 if self.dry else 256,
                    buffer_size=10_000,
                    run_dir=f"{folder}/run",
                    quiet=True,
                )
                counters = td3.train(config).checkpoint.counters
            rate = counters.updates / counters.elapsed_s
            self.row("td3", name, updates_per_s=rate, dropped=counters.dropped)

    def part_profile(self) -> None:
        """Profiles two iterations and writes tables of kernel times to profile_*.txt."""
        if self.device.type != "cuda":
            return
        from torch.profiler import ProfilerActivity, profile

        shared, name = self.model("a3c, bfloat16"), "a3c, bfloat16"
        groups = [pictures.Pictures(128), pictures.Pictures(128)]
        env_codec = EnvCodec(ObservationCodec.of(SPACE), ActionCodec.of(ACTIONS))
        collector = Collector(groups, env_codec, 5, 0, lambda _: None, self.device)
        generator = torch.Generator(self.device).manual_seed(0)
        act = functools.partial(shared.module.act, generator=generator)

        def gradient() -> torch.Tensor:
            return shared.gradient(
                losses.actor_critic_loss(shared.module, collector.rollout, a2c.Config()).total
            )

        replayed = cuda_graphs.captured_act(act, collector.rollout, 128, generator)
        pairs = {"eager": (act, gradient)}
        pairs["captured"] = (replayed, cuda_graphs.Captured(gradient, self.device))
        for mode, (acting, learning) in pairs.items():
            collector.collect(acting)
            learning()
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
                for _ in range(2):
                    collector.collect(acting)
                    learning()
                self.wait()
            averages = profiled.key_averages()
            text = averages.table(sort_by="cuda_time_total", row_limit=40)
            text += averages.table(sort_by="self_cpu_time_total", row_limit=25)
            (self.out / f"profile_{mode}.txt").write_text(text)
            kernels = sum(each.self_device_time_total for each in averages) / 2e3
            host = sum(each.self_cpu_time_total for each in averages) / 2e3
            self.row("profile", f"{mode}, {name}", kernels_ms=kernels, host_ms=host)

    def part_a3c(self) -> None:
        """Times A3C by number of workers, with one and with 16 environments per worker."""
        cells = {1: (1, 2)} if self.dry else {1: (1, 2, 4, 8, 16), 16: (1, 4, 16)}
        for envs, workers in cells.items():
            config = throughput.Config(seconds=self.seconds / 2, n_steps=5 if envs == 1 else 20)
            one_worker = 0.0
            for count in workers:
                cell = {"workers": count, "envs_per_worker": envs}
                rates = throughput.measure(config, cell)
                one_worker = one_worker or rates["steps_per_s"]
                self.row(
                    "a3c",
                    f"{count} workers of {envs}",
                    steps_per_s=round(rates["steps_per_s"]),
                    raw_steps_per_s=round(rates["raw_steps_per_s"]),
                    times_one=rates["steps_per_s"] / one_worker,
                    staleness=rates["staleness_mean"],
                )


def tables(path: pathlib.Path) -> str:
    """Formats the rows of a CSV file as Markdown, one table per part."""
    parts: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            parts[row["part"]][row["name"]][row["metric"]] = row["value"]
    lines = []
    for part, rows in parts.items():
        metrics = list(dict.fromkeys(metric for row in rows.values() for metric in row))
        lines += ["", f"| {part} | {' | '.join(metrics)} |", "|---" * (1 + len(metrics)) + "|"]
        for name, row in rows.items():
            lines.append(f"| {name} | {' | '.join(row.get(m, '') for m in metrics)} |")
    return "\n".join(lines[1:])


def main() -> None:
    """Runs all parts, also after one that failed."""
    config = tyro.cli(Config, description=__doc__)
    if config.table is not None:
        print(tables(pathlib.Path(config.table)))
        return
    shared_memory.retain_freed_memory()  # as in a run, so that raw rates are comparable
    with contextlib.ExitStack() as stack:
        default = str(machine.RESULTS)
        if config.dry:
            default = stack.enter_context(tempfile.TemporaryDirectory())
        out = pathlib.Path(os.environ.get("OUT", default))
        check = Check(config, out)
        failed = [part for part in config.parts if not check.run(part)]
        print(tables(out / "gpu_check.csv"))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
