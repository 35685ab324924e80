"""PPO of hogwild_rl with the settings of ppo_curves.py, in one process with one thread."""

import json
import sys
import tempfile
from typing import Any
from unittest import mock

from measurement import report

from hogwild_rl import ppo
from hogwild_rl.hogwild.counters import CounterWriter


def main() -> None:
    """Trains once."""
    settings, returns = json.loads(sys.argv[1]), list[float]()
    add_rollout = CounterWriter.add_rollout

    def recorded(self: CounterWriter, count: int, episodes: Any) -> None:
        returns.extend(value for value, _ in episodes)
        add_rollout(self, count, episodes)

    own = dict.fromkeys(("normalize_observations", "normalize_rewards", "rescale_actions"), False)
    own |= {"lr_schedule": "constant", "target_kl": 0.0, "device": "cpu", "vectorization": "sync"}
    own |= {"clip_value_range": 0.0, "hidden": (64, 64), "activation": "tanh", "quiet": True}
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(CounterWriter, "add_rollout", recorded),
    ):
        agent = ppo.train(ppo.Config(run_dir=f"{folder}/run", **own, **settings))
    progress = agent.checkpoint.counters
    packages = ("hogwild_rl", "torch", "gymnasium", "numpy")
    report(*packages, steps_per_s=progress.steps / progress.elapsed_s, returns=returns)


if __name__ == "__main__":
    main()
