"""Between a policy and its environments."""

import dataclasses
from collections.abc import Callable

from hogwild_rl.envs.actions import ActionCodec
from hogwild_rl.envs.observations import ObservationCodec
from hogwild_rl.envs.vector import Array


@dataclasses.dataclass(frozen=True)
class Interface:
    """How a policy and its environments talk to each other.

    Attributes:
        observations: what the policy is shown.
        actions: what it does.
        state_size: H, how much it remembers.
        lives: a life lost ends the values, though not the episode.
        rewards: what the learner is paid for what the environment pays, [T, B], in place, given
            where episodes ended and what was valid, [T, B] each.
    """

    observations: ObservationCodec
    actions: ActionCodec
    state_size: int = 0
    lives: bool = False
    rewards: Callable[[Array, Array, Array], None] | None = None
