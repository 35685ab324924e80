"""Console script with one subcommand per program, e.g. ``hogwild-rl a3c --workers 4``."""

import runpy
import sys

COMMANDS = {
    "a3c": "asynchronous advantage actor-critic on CPU cores",
    "a2c": "synchronous advantage actor-critic, batched on one device",
    "ppo": "proximal policy optimization, in one process or lock-free",
    "reinforce": "Monte Carlo policy gradient",
    "ddpg": "deep deterministic policy gradient",
    "td3": "twin delayed deep deterministic policy gradient",
    "evaluate": "returns of a saved run, on screen or as videos",
    "plot": "learning curves of runs",
    "doctor": "versions, limits and features of this machine",
}


def main() -> None:
    """Runs the program named by the first argument, as ``python -m`` does."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print("usage: hogwild-rl COMMAND [--help] ...\n")
        print("\n".join(f"  {each:11}{text}" for each, text in COMMANDS.items()))
        return
    if name not in COMMANDS:
        print(f"error: unknown command {name!r}: give {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    del sys.argv[1]
    runpy.run_module(f"hogwild_rl.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
