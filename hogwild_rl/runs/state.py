"""Everything that a run trains."""

from typing import Any

from hogwild_rl.hogwild.counters import Counters
from hogwild_rl.learn.normalization import Normalization
from hogwild_rl.runs.logger import GAUGES


class TrainState:
    """Model, optimizer, running moments and counters, shared by all workers of a run.

    The model has its parameters in flat tensors, and the network as `module`; the optimizer has
    `state_dict` and `load_state_dict`.
    """

    def __init__(
        self, model: Any, optimizer: Any, normalization: Normalization, workers: int
    ) -> None:
        self.model, self.optimizer, self.normalization = model, optimizer, normalization
        self.counters = Counters(workers, GAUGES)
