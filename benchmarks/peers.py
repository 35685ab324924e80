"""Speed compared with other libraries on CartPole-v1, in alternated pairs of runs.

    python benchmarks/peers.py
    python benchmarks/peers.py --tasks a3c solve --peers pfrl sb3 --pairs 11

Each library is installed once into a virtual environment of its own, with exact versions; one that
cannot be installed is skipped. Every run is a new process with a time-out.

- a3c: throughput of textbook A3C, two processes with one environment each, rollouts of 5 steps;
  also of the environments alone, with random actions.
- envs64: throughput of one process with 64 environments, rollouts of 5 steps.
- solve: seconds from process start until the mean return of the last 100 training episodes reaches
  475, with a new seed per pair. hogwild_rl is timed until its process exits.

Policy and value have separate 2×64 tanh networks in all libraries. Throughput is that of training,
without start-up, compilation and one second of warm-up. Printed are medians and quartiles of both
sides and of the ratios of the pairs: how many times as fast hogwild_rl is. Every run is a row of
benchmarks/results/peers.csv.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import machine
import numpy as np
import tyro

Task: TypeAlias = Literal["a3c", "envs64", "solve"]
Peer: TypeAlias = Literal["sb3", "pfrl", "skrl", "rejax"]

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = pathlib.Path(__file__).parent / "peer_programs"
SOLVE_LIMIT_S = 120.0
START_LIMIT_S = 120.0  # includes compilation by JAX
INSTALL_LIMIT_S = 1800.0

# Packages without a version have that of constraints.txt. PFRL imports packaging, but does not
# require it.
REQUIREMENTS: dict[Peer, tuple[str, ...]] = {
    "sb3": ("stable-baselines3==2.9.2", "torch", "gymnasium[box2d,mujoco]"),
    "pfrl": ("pfrl==0.4.0", "torch", "gymnasium", "packaging==26.4"),
    "skrl": ("skrl==2.1.1", "torch", "gymnasium"),
    "rejax": (
        *("rejax==0.1.3", "gymnax==0.0.9", "jax==0.10.2", "jaxlib==0.10.2", "flax==0.12.8"),
        *("distrax==0.1.9", "tfp-nightly==0.26.0.dev20261027", "optax==0.2.8", "chex==0.1.92"),
    ),
}


class Comparison(NamedTuple):
    """A program of a peer, and the task on which it is compared with hogwild_rl."""

    task: Task
    peer: Peer
    label: str
    program: str
    flags: tuple[str, ...] = ()


COMPARISONS = (
    Comparison("a3c", "pfrl", "PFRL A3C", "pfrl_a3c.py"),
    Comparison("envs64", "sb3", "SB3 A2C", "sb3.py"),
    Comparison("envs64", "skrl", "skrl A2C", "skrl_a2c.py"),
    Comparison("envs64", "rejax", "rejax PPO, 1 epoch", "rejax_ppo.py", ("--epochs", "1")),
    Comparison("envs64", "rejax", "rejax PPO, 4 epochs", "rejax_ppo.py", ("--epochs", "4")),
    Comparison("solve", "sb3", "SB3 A2C", "sb3.py"),
    Comparison("solve", "pfrl", "PFRL A3C", "pfrl_a3c.py"),
    Comparison("solve", "rejax", "rejax PPO", "rejax_ppo.py"),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    tasks: tuple[Task, ...] = ("a3c", "envs64", "solve")
    """Tasks."""
    peers: tuple[Peer, ...] = ("sb3", "pfrl", "skrl", "rejax")
    """Libraries."""
    pairs: int = 5
    """Pairs of runs of each comparison."""
    seconds: float = 10.0
    """Duration of one measurement of throughput."""
    folder: str = "~/.cache/hogwild_rl-peers"
    """Folder of the virtual environments."""


class RunError(Exception):
    """A run without a result."""


def install(peer: Peer, folder: pathlib.Path) -> pathlib.Path | None:
    """Python of the peer's virtual environment, which is made if necessary; None if it fails."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {name: f"=={version}" for name, _, version in (x.partition("==") for x in lines)}
    wanted = [each + pinned.get(each.partition("[")[0], "") for each in REQUIREMENTS[peer]]
    python, stamp = folder / peer / "bin" / "python", folder / peer / "installed.txt"
    content = "\n".join((sys.version, *wanted))
    if not stamp.exists() or stamp.read_text() != content:
        print(f"installing {', '.join(wanted)}", flush=True)
        try:
            venv.create(folder / peer, clear=True, symlinks=True, with_pip=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            run([*map(str, pip), *wanted], INSTALL_LIMIT_S)
        except (RunError, OSError, subprocess.SubprocessError) as error:
            print(f"{peer} cannot be installed and is skipped: {error}", flush=True)
            return None
        stamp.write_text(content)
    return python


@contextlib.contextmanager
def session(words: Sequence[str], **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Starts a process in a session of its own; at the end kills all processes of the session."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, **variables}
    with subprocess.Popen(words, env=environment, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(words: Sequence[str], timeout_s: float, **variables: str) -> str:
    """Runs a program and returns what it prints; raises RunError if it fails or takes too long."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        session(words, TMPDIR=folder, **variables) as process,
    ):
        try:
            output, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise RunError(f"no result after {timeout_s:g} s") from None
    if process.returncode:
        reason = next(filter(str.strip, reversed(errors.splitlines())), "no message")
        raise RunError(f"exit code {process.returncode}: {reason[:200]}")
    return output


def result(
    comparison: Comparison, side: str, python: pathlib.Path, seed: int, config: Config
) -> dict[str, Any]:
    """Result of one side, as printed by its program."""
    task, flags = comparison.task, ("--seconds", str(config.seconds), "--seed", str(seed))
    limit_s = SOLVE_LIMIT_S if task == "solve" else START_LIMIT_S + config.seconds
    start_s = time.time()
    if side == "peer":  # -E: PYTHONPATH is that of hogwild_rl
        words = [str(python), "-E", str(PROGRAMS / comparison.program), task, *comparison.flags]
        output = run([*words, *flags], limit_s, OMP_NUM_THREADS="1", JAX_PLATFORMS="cpu")
    else:
        output = run([sys.executable, str(PROGRAMS / f"{side}.py"), task, *flags], limit_s)
    line = next(line for line in output.splitlines() if line.startswith("{"))
    printed: dict[str, Any] = json.loads(line)
    if "solved_at" in printed:
        printed["seconds"] = printed["solved_at"] - start_s
    return printed


def measure(
    comparison: Comparison, side: str, python: pathlib.Path, pair: int, config: Config
) -> dict[str, Any]:
    """Runs one side of a pair; prints and returns its row of the CSV file."""
    printed, failure = {}, ""
    try:
        printed = result(comparison, side, python, pair, config)
    except RunError as error:
        failure = str(error)
    row = {
        "task": comparison.task,
        "peer": comparison.label,
        "pair": pair,
        "side": side,
        "steps_per_s": round(printed["steps_per_s"]) if "steps_per_s" in printed else "",
        "seconds": round(printed["seconds"], 2) if "seconds" in printed else "",
        "failure": failure,
        "versions": ", ".join(f"{name} {v}" for name, v in printed.get("versions", {}).items()),
    }
    texts = [f"{name} {value}" for name, value in row.items() if value != ""]
    print("; ".join(texts), flush=True)
    return row


def summary(comparison: Comparison, rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians and quartiles of the sides and of their ratio; failed runs are only counted."""
    unit = "seconds" if comparison.task == "solve" else "steps_per_s"
    results: dict[str, dict[int, float]] = {}
    texts = []
    for side in dict.fromkeys(row["side"] for row in rows):
        runs = [row for row in rows if row["side"] == side]
        results[side] = {row["pair"]: row[unit] for row in runs if not row["failure"]}
        values = list(results[side].values())
        texts.append(f"{side} {spread(values)}, {len(values)} of {len(runs)} runs")
    ours, theirs = results["own"], results["peer"]
    ratios = [ours[pair] / theirs[pair] for pair in ours.keys() & theirs.keys()]
    times = spread([1 / ratio for ratio in ratios] if unit == "seconds" else ratios)
    return f"{comparison.task}, {comparison.label}, {unit}: {'; '.join(texts)}; ratio {times}"


def spread(values: Sequence[float]) -> str:
    """Median and quartiles as text."""
    if not values:
        return "none"
    lower, median, upper = np.quantile(values, (0.25, 0.5, 0.75))
    digits = 0 if median >= 1000 else 2
    return f"{median:,.{digits}f} ({lower:,.{digits}f} to {upper:,.{digits}f})"


def main() -> None:
    """Installs the peers and runs the pairs; writes every run, prints the medians."""
    config = tyro.cli(Config, description=__doc__)
    if config.pairs < 1:
        raise SystemExit(f"pairs must be at least 1, got {config.pairs}")
    print(machine.describe(), flush=True)
    chosen = [c for c in COMPARISONS if c.task in config.tasks and c.peer in config.peers]
    folder = pathlib.Path(config.folder).expanduser()
    pythons = {peer: install(peer, folder) for peer in dict.fromkeys(c.peer for c in chosen)}
    runs = [(c, python, list[Any]()) for c in chosen if (python := pythons[c.peer])]
    if not runs:
        raise SystemExit("nothing to measure: no installed library has one of these tasks")
    start_s = time.monotonic()
    for pair in range(config.pairs):
        for comparison, python, rows in runs:
            raw = ("random_actions",) if comparison.task == "a3c" else ()
            for side in ("peer", "own", *raw):
                rows.append(measure(comparison, side, python, pair, config))
                machine.write_csv("peers", [row for *_, each in runs for row in each])
    for comparison, _, rows in runs:
        print(summary(comparison, rows))
    print(f"{config.pairs} pairs, {time.monotonic() - start_s:.0f} s")
    print(f"written: {machine.RESULTS / 'peers.csv'}")


if __name__ == "__main__":
    main()
