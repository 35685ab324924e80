"""What every actor-critic is told, however its updates are taken."""

import dataclasses
import math
from typing import Literal

import numpy as np

from hogwild_rl.envs.observations import ObservationCodec
from hogwild_rl.envs.vector import EnvFacts
from hogwild_rl.learning.interface import Interface
from hogwild_rl.runs import machine, settings
from hogwild_rl.runs.normalize import Normalizer
from hogwild_rl.runs.policy import PolicySettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActorCriticSettings(PolicySettings):
    """A policy that is updated after every few steps, with the help of a value function."""

    n_steps: int = 16
    """Steps of each environment between updates."""
    gae_lambda: float = 0.95
    """λ of generalized advantage estimation; 1 is the paper's n-step return."""
    life_loss: bool = False
    """A lost life ends the values, as death does, though not the episode."""
    rms_alpha: float = 0.99
    """Decay α of RMSprop's running average."""
    rms_eps: float = 1e-5
    """ε of RMSprop, inside the root."""
    lstm: int = 0
    """Size of an LSTM cell between body and heads; 0 for none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: the network's body computes in it; parameters and losses stay float32."""

    def __post_init__(self) -> None:
        super().__post_init__()
        settings.at_least("n_steps", self.n_steps, 1)
        settings.between("gae_lambda", self.gae_lambda, 0, 1)
        settings.above("rms_eps", self.rms_eps, 0)
        settings.between("rms_alpha", self.rms_alpha, 0, 0.999_999)
        settings.at_least("lstm", self.lstm, 0)

    def check_rollouts(self, facts: EnvFacts, num_envs: int) -> None:
        """Makes sure that the observations of so many environments' rollouts fit into memory.

        Raises:
            UserError: they do not.
        """
        seen = ObservationCodec.of(facts.observation_space)
        row = math.prod(seen.shape) * np.dtype(seen.dtype).itemsize
        machine.check_memory(
            f"what {num_envs:,} environments show in n_steps {self.n_steps:,}",
            (self.n_steps + 1) * num_envs * row,
            "give a smaller n_steps, or fewer environments",
        )

    def interface(self, facts: EnvFacts, normalizer: Normalizer) -> Interface:
        """Between the network and its environments."""
        plain = super().interface(facts, normalizer)
        return dataclasses.replace(plain, state_size=self.lstm, lives=self.life_loss)
