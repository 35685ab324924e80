"""A3C and A2C of hogwild_rl on CartPole-v1, by their command lines."""

import csv
import pathlib
import subprocess
import sys
import tempfile
import time

from measurement import arguments, report

_COMMANDS = {
    "a3c": ("a3c", "--workers", "2", "--envs-per-worker", "1", "--n-steps", "5"),
    "envs64": ("a2c", "--num-envs", "64", "--n-steps", "5"),
    "solve": ("a3c", "--workers", "2", "--stop-when-solved"),
}


def command(task: str, seed: int, folder: str) -> list[str]:
    """Command line of a run."""
    algorithm, *flags = _COMMANDS[task]
    words = [sys.executable, "-m", f"hogwild_rl.{algorithm}", "--env", "CartPole-v1", *flags]
    return [*words, "--seed", str(seed), "--run-dir", f"{folder}/run"]


def throughput(task: str, seconds: float, seed: int) -> float:
    """Steps per second from one second after the first row of the log, as in throughput.py."""
    with tempfile.TemporaryDirectory() as folder:
        log = pathlib.Path(folder, "run", "progress.csv")
        words = [*command(task, seed, folder), "--total-timesteps", str(10**12), "--quiet"]
        with subprocess.Popen(words) as process:
            while not log.exists() or log.read_text().count("\n") < 2:
                if process.poll() is not None:
                    raise SystemExit(f"training ended with exit code {process.returncode}")
                time.sleep(0.05)
            time.sleep(seconds + 1)
            process.terminate()  # background jobs of a shell ignore SIGINT
        with log.open() as file:
            rows = [(float(row["time_s"]), int(row["steps"])) for row in csv.DictReader(file)]
    counted = [row for row in rows if row[0] >= rows[0][0] + 1]
    if len(counted) < 2:
        raise SystemExit("too few rows in progress.csv: give more --seconds")
    (start_s, first), (end_s, last) = counted[0], counted[-1]
    return (last - first) / (end_s - start_s)


def solve(seed: int) -> float:
    """Seconds from the start of the process until its exit, including the last checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        words = command("solve", seed, folder)
        start_s = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start_s
    if done.returncode or "solved: " not in done.stdout:
        raise SystemExit(f"not solved, exit code {done.returncode}")
    return seconds


def main() -> None:
    """Runs one task."""
    args = arguments(__doc__, *_COMMANDS)
    packages = ("hogwild_rl", "torch", "gymnasium", "numpy")
    if args.task == "solve":
        report(*packages, seconds=solve(args.seed))
    else:
        report(*packages, steps_per_s=throughput(args.task, args.seconds, args.seed))


if __name__ == "__main__":
    main()
