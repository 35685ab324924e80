"""Everything that a run trains."""

import dataclasses
from typing import Any

from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.learn.normalization import Normalization


@dataclasses.dataclass(frozen=True)
class TrainState:
    """Model, optimizer, running moments and counters, shared by all workers of a run.

    Attributes:
        model: holder of the parameters in one or more flat tensors; `module` is the network.
        optimizer: steps them; has `state_dict` and `load_state_dict`.
        normalization: running moments of observations and returns.
        counters: a row for each worker.
    """

    model: Any
    optimizer: Any
    normalization: Normalization
    counters: Counters
