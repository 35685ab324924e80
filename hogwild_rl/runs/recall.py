"""What a worker needs to go on as if it had never stopped."""

from collections.abc import Sequence
from typing import Any

import torch
from gymnasium.vector import VectorEnv

from hogwild_rl.envs import snapshot
from hogwild_rl.learning.rollout import Collector
from hogwild_rl.runs.normalize import Normalizer


class Recall:
    """A worker's random stream, environments and open episodes, between two updates.

    With what a checkpoint holds besides, a run that goes on from it is the run that never stopped,
    bit for bit, if it has one worker, the same settings, and environments that live in Python.

    Args:
        generator: of the actions.
        groups: the environments.
        collector: of their steps.
        normalizer: of their rewards.
    """

    def __init__(
        self,
        generator: torch.Generator,
        groups: Sequence[VectorEnv[Any, Any, Any]],
        collector: Collector,
        normalizer: Normalizer,
    ) -> None:
        self._generator, self._groups = generator, groups
        self._collector, self._normalizer = collector, normalizer

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain values and tensors, or why environments cannot be recalled."""
        try:
            envs = [snapshot.take(group) for group in self._groups]
        except snapshot.OpaqueError as error:
            return {"lacking": str(error)}
        discounted = self._normalizer.discounted
        return {
            "envs": envs,
            "generator": self._generator.get_state(),
            "carried": {n: t.to("cpu", copy=True) for n, t in self._collector.carried.items()},
            "discounted": None if discounted is None else torch.tensor(discounted),
        }

    def restore(self, state: dict[str, Any] | None, seed: int) -> str:
        """Continues where `state` was taken, with the same device, number and type of environments.

        Args:
            state: what `state` gave, or None.
            seed: of the environments, where they have to be reset.

        Returns:
            Why they were reset, empty if they were not or `state` gives the reason.
        """
        if state is None or "lacking" in state:
            return ""
        try:
            reason = self._restore(state)
        except Exception:  # of another making; a file can hold anything
            reason = "the checkpoint holds other environments"
        if reason:
            self._collector.begin(seed)
        return reason

    def _restore(self, state: dict[str, Any]) -> str:
        saved, now = state["carried"], self._collector.carried
        shapes = [{name: t.shape for name, t in each.items()} for each in (saved, now)]
        if shapes[0] != shapes[1]:
            return "the checkpoint holds another number of environments"
        if state["generator"].shape != self._generator.get_state().shape:
            return "the checkpoint's random stream is of another device"
        for group, taken in zip(self._groups, state["envs"], strict=True):
            snapshot.give(group, taken)
        for name, tensor in now.items():
            tensor.copy_(saved[name])
        self._generator.set_state(state["generator"])
        if state["discounted"] is not None:
            self._normalizer.discounted = state["discounted"].numpy()
        return ""
