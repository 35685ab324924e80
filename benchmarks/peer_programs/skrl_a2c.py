"""A2C of skrl on gymnasium's native vector environment of CartPole-v1, with one torch thread."""

# mypy: disable-error-code="import-not-found, misc"
import itertools
from typing import Any

import gymnasium
import torch
from measurement import RateMeter, arguments, report
from skrl.agents.torch.a2c import A2C
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn

_NUM_ENVS = 64
_N_STEPS = 5
_TIMESTEPS = 20 * _N_STEPS  # of one call of the trainer


def _network(outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs)
    )


class Policy(CategoricalMixin, Model):
    """Policy π(a|s)."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces, device="cpu")
        CategoricalMixin.__init__(self)
        self.network = _network(2)

    def compute(self, inputs: Any, role: str) -> Any:  # noqa: ARG002
        """Returns the logits."""
        return self.network(inputs["observations"]), {}


class Value(DeterministicMixin, Model):
    """Value function V(s)."""

    def __init__(self, **spaces: Any) -> None:
        Model.__init__(self, **spaces, device="cpu")
        DeterministicMixin.__init__(self)
        self.network = _network(1)

    def compute(self, inputs: Any, role: str) -> Any:  # noqa: ARG002
        """Returns V(s)."""
        return self.network(inputs["observations"]), {}


def throughput(seconds: float, seed: int) -> float:
    """Steps per second with 64 environments and rollouts of 5 steps.

    Logs and checkpoints are disabled. The steps that only reset an environment are counted.
    """
    set_seed(seed)
    envs = wrap_env(
        gymnasium.make_vec(
            "CartPole-v1", num_envs=_NUM_ENVS, vectorization_mode="vector_entry_point"
        ),
        verbose=False,
    )
    spaces = {"observation_space": envs.observation_space, "action_space": envs.action_space}
    agent = A2C(
        models={"policy": Policy(**spaces), "value": Value(**spaces)},
        memory=RandomMemory(memory_size=_N_STEPS, num_envs=_NUM_ENVS, device="cpu"),
        cfg={
            "rollouts": _N_STEPS,
            "experiment": {"write_interval": 0, "checkpoint_interval": 0},
        },
        device="cpu",
        **spaces,
    )
    settings = {"timesteps": _TIMESTEPS, "headless": True, "disable_progressbar": True}
    trainer = SequentialTrainer(env=envs, agents=agent, cfg=settings)
    meter = RateMeter(seconds)
    for calls in itertools.count(1):
        trainer.train()
        if meter.finished(calls * _TIMESTEPS * _NUM_ENVS):
            break
    return meter.per_s


def main() -> None:
    """Runs the task."""
    args = arguments(__doc__, "envs64")
    torch.set_num_threads(1)
    rate = throughput(args.seconds, args.seed)
    report("skrl", "torch", "gymnasium", "numpy", steps_per_s=rate)


if __name__ == "__main__":
    main()
