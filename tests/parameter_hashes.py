"""SHA-256 of the parameters after short seeded runs of every algorithm, to compare two commits.

The hashes depend on the machine and on torch: write before a refactoring, compare after it.

    python -m tests.parameter_hashes --write /tmp/hashes.json
    python -m tests.parameter_hashes --compare /tmp/hashes.json
"""

import argparse
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from typing import Any

import hogwild_rl
from hogwild_rl import a2c, a3c, ddpg, reinforce, td3

PROGRAMS: dict[str, Any] = {
    "a3c": a3c,
    "a2c": a2c,
    "reinforce": reinforce,
    "ddpg": ddpg,
    "td3": td3,
}
SHORT = {"total_timesteps": 4_000, "n_steps": 8, "learning_rate": 1e-3, "seed": 5}
A3C = {**SHORT, "workers": 1, "envs_per_worker": 2, "env": "CartPole-v1"}
A2C = {**SHORT, "num_envs": 4, "vectorization": "sync", "env": "CartPole-v1"}
PLAIN = {"normalize_rewards": False, "normalize_observations": False, "ent_coef": 0.01}
NORMALIZED = {"normalize_observations": True, "normalize_rewards": True}
REPLAY = {
    "env": "Pendulum-v1",
    "total_timesteps": 600,
    "learning_starts": 200,
    "seed": 5,
    "batch_size": 32,
    "hidden": (32, 32),
    "buffer_size": 10_000,
    "learning_rate": 1e-3,
}
PONG = {"env": "PongNoFrameskip-v4", "total_timesteps": 200, "num_envs": 4}
CONTINUOUS = {"env": "Pendulum-v1", "state_dependent_std": True}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "a3c": ("a3c", A3C),
    "a3c, one environment, paper's returns": (
        "a3c",
        {**A3C, "envs_per_worker": 1, "n_steps": 5, "gae_lambda": 1.0},
    ),
    "a3c, LSTM": ("a3c", {**A3C, "lstm": 16, **NORMALIZED}),
    "a3c, continuous": ("a3c", {**A3C, **CONTINUOUS}),
    "a2c, sync": ("a2c", A2C),
    "a2c, native": ("a2c", {**A2C, "num_envs": 16, "vectorization": "native"}),
    "a2c, async": ("a2c", {**A2C, "vectorization": "async", "total_timesteps": 1_000}),
    "a2c, two groups": ("a2c", {**A2C, "env_groups": 2, **NORMALIZED}),
    "a2c, LSTM": ("a2c", {**A2C, "lstm": 16, "normalize_rewards": True}),
    "a2c, normalizers": ("a2c", {**A2C, **NORMALIZED, "clip_rewards": 5.0}),
    "a2c, shared trunk": ("a2c", {**A2C, "shared_trunk": True, "activation": "relu"}),
    "a2c, images": (
        "a2c",
        {**A2C, "env": "tests.envs:Images-v0", "total_timesteps": 1_000, **PLAIN},
    ),
    "a2c, Atari": (
        "a2c",
        {**A2C, **PONG, "vectorization": "native", "terminal_on_life_loss": True},
    ),
    "a2c, continuous": ("a2c", {**A2C, **CONTINUOUS}),
    "a2c, NaN": ("a2c", {**A2C, "env": "tests.envs:FaultyRareNan-v0", **PLAIN}),
    "reinforce": ("reinforce", {"env": "CartPole-v1", "total_timesteps": 6_000, "seed": 5}),
    "reinforce, value": (
        "reinforce",
        {"env": "CartPole-v1", "total_timesteps": 6_000, "seed": 5, "baseline": "value"},
    ),
    "ddpg": ("ddpg", {**REPLAY, "noise": "ou"}),
    "td3": ("td3", REPLAY),
    "td3, several environments": ("td3", {**REPLAY, "envs_per_worker": 3, "gradient_steps": -1}),
}
RANKS = {**A2C, "num_envs": 4, "normalize_observations": True}


def digest(folder: pathlib.Path) -> str:
    """Counters and SHA-256 of parameters and optimizer state in a run's newest checkpoint."""
    checkpoint = hogwild_rl.load(folder, allow_import=True).checkpoint
    state = hashlib.sha256()
    for name, tensor in sorted(checkpoint.parameters.items()):
        state.update(name.encode() + tensor.contiguous().numpy().tobytes())
    statistics = json.dumps(checkpoint.optimizer, default=lambda t: t.tolist(), sort_keys=True)
    state.update(statistics.encode())
    counters = checkpoint.counters
    return f"{counters.steps} {counters.updates} {counters.episodes} {state.hexdigest()[:16]}"


def hashes(only: str) -> dict[str, str]:
    """Digests of every run and of its resumed continuation, by name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (algorithm, settings)) in enumerate(RUNS.items()):
            if only not in name:
                continue
            run, program = pathlib.Path(folder, str(number)), PROGRAMS[algorithm]
            program.train(program.Config(run_dir=str(run), quiet=True, **settings))
            found[name] = digest(run)
            total = 2 * settings["total_timesteps"]
            program.train(
                program.Config(
                    resume=str(run), total_timesteps=total, quiet=True, allow_import=True
                )
            )
            found[f"{name}, resumed"] = digest(run)
            print(name, "|", found[name], "|", found[f"{name}, resumed"], flush=True)
        if only in "a2c, two ranks":
            found["a2c, two ranks"] = two_ranks(pathlib.Path(folder, "ranks"))
            print("a2c, two ranks |", found["a2c, two ranks"])
    return found


def two_ranks(run: pathlib.Path) -> str:
    """Digest of A2C in two processes that average their gradients."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = (
        "from hogwild_rl import a2c; "
        f"a2c.train(a2c.Config(run_dir={str(run)!r}, quiet=True, **{RANKS}))"
    )
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={
                **os.environ,
                **variables,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
            },
        )
        for rank in (0, 1)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    return digest(run)


def main() -> None:
    """Writes or compares the hashes; exits with 1 if any differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=pathlib.Path)
    parser.add_argument("--compare", type=pathlib.Path)
    parser.add_argument("--only", default="", help="runs whose name contains this")
    arguments = parser.parse_args()
    found = hashes(arguments.only)
    if arguments.write:
        arguments.write.write_text(json.dumps(found, indent=1) + "\n")
    if arguments.compare:
        before = json.loads(arguments.compare.read_text())
        differ = [name for name, value in found.items() if before.get(name) != value]
        print(f"{len(found)} compared, {len(differ)} differ: {', '.join(differ) or 'none'}")
        sys.exit(bool(differ))


if __name__ == "__main__":
    main()
