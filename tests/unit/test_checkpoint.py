"""Tests of checkpoint files."""

import collections
import pathlib
from typing import Any

import numpy as np
import pytest
from gymnasium import Space, spaces

from hogwild_rl.runs import files
from hogwild_rl.runs.checkpoint import Checkpoint
from hogwild_rl.runs.logger import Progress


class Angle(spaces.Box):
    """User-defined subclass of Box."""


WIDEST = np.iinfo(np.int64)
UNSORTED = collections.OrderedDict(z=spaces.Discrete(2), a=spaces.Box(-1, 1, (3,)))
SPACES = {
    "box": spaces.Box(np.float32([-1, -np.inf]), np.float32([0.1, np.inf])),
    "float64": spaces.Box(-0.1, 1e300, (2,), np.float64),
    "bytes": spaces.Box(0, 255, (4, 4, 3), np.uint8),
    "widest": spaces.Box(WIDEST.min, WIDEST.max, (1,), np.int64),
    "own class": Angle(-3, 3, (2,)),
    "scalar": spaces.Box(0, 1, ()),
    "discrete": spaces.Discrete(3, start=-1),
    "int32": spaces.Discrete(3, dtype=np.int32),
    "multidiscrete": spaces.MultiDiscrete([[2, 3]], start=[[1, 0]]),
    "multidiscrete int32": spaces.MultiDiscrete([2, 3], dtype=np.int32),
    "multibinary": spaces.MultiBinary(4),
    "multibinary of two axes": spaces.MultiBinary([2, 3]),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Tuple([spaces.MultiBinary(1)])]),
    "dict": spaces.Dict({"b": spaces.Dict({"c": spaces.Discrete(2)}), "a": spaces.Discrete(3)}),
    "unsorted dict": spaces.Dict(UNSORTED),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_loaded_spaces_equal_the_saved_ones(space: Space[Any], tmp_path: pathlib.Path) -> None:
    """Equal, with the parts in the same order, which is that of the network's inputs."""
    saved = Checkpoint("a3c", {}, space, space, {}, {}, {}, Progress())
    saved.save(tmp_path / "file.pt")
    loaded = Checkpoint.load(tmp_path / "file.pt")
    assert loaded.observation_space == space
    assert loaded.action_space == space
    assert repr(loaded.observation_space) == repr(space)


def test_a_failed_write_releases_the_buffer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise Python 3.13 prints that it ignores an exception of BytesIO."""
    contents = []

    def fail(path: pathlib.Path, content: memoryview, previous: pathlib.Path | None) -> None:
        contents.append(content)
        raise OSError("disk full")

    monkeypatch.setattr(files, "write_with_digest", fail)
    space = spaces.Discrete(2)
    saved = Checkpoint("a3c", {}, space, space, {}, {}, {}, Progress())
    with pytest.raises(OSError, match="disk full"):
        saved.save(tmp_path / "file.pt")
    with pytest.raises(ValueError, match="released"):
        contents[0].tobytes()
