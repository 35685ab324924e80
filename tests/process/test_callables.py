"""Tests of classes and functions that a child cannot import: they are sent to it by value."""

import functools
import importlib.util
import inspect
import operator
import os
import pathlib
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hogwild_rl.envs import make
from hogwild_rl.envs.subproc import ProcessVectorEnv
from hogwild_rl.errors import UserError
from hogwild_rl.hogwild import pickling, processes
from tests import envs

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import functools, gymnasium, numpy as np, torch
from gymnasium import spaces
from hogwild_rl import a2c, a3c, ddpg, reinforce, td3

class Cell(gymnasium.Env):
    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)
    def __init__(self, length):
        self.length = length
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        return np.ones(2, np.float32), 1.0, self.t == self.length, False, {"by": Cell}

def closure(length):
    return lambda: Cell(length)

body = lambda space: torch.nn.Linear(*space.shape, 8)
short = {"total_timesteps": 300, "quiet": True}
for algorithm, settings in [
    (a3c, {"workers": 2, "network": body}),
    (a3c, {"workers": 1}),
    (a2c, {"num_envs": 2, "vectorization": "sync", "network": body}),
    (a2c, {"num_envs": 2, "vectorization": "async"}),
    (ddpg, {"workers": 2}),
    (td3, {"workers": 2, "network": body}),
    (reinforce, {"episodes": 4}),
]:
    env = closure(10) if "network" in settings else functools.partial(Cell, 10)
    agent = algorithm.train(algorithm.Config(env=env, **settings, **short))
    assert agent.checkpoint.counters.steps >= 300
    assert agent.evaluate(1, env=env).tolist() == [10.0]
print("done")
"""


def run_program(folder: pathlib.Path, *arguments: str, stdin: str = "") -> Any:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        input=stdin,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )


@pytest.mark.long
@pytest.mark.parametrize("how", ["stdin", "-c"])
def test_every_algorithm_trains_with_classes_and_functions_of_a_program_without_file(
    how: str, tmp_path: pathlib.Path
) -> None:
    given = {"stdin": ("-",), "-c": ("-c", PROGRAM)}[how]
    result = run_program(tmp_path, *given, stdin=PROGRAM * (how == "stdin"))
    assert (result.returncode, result.stderr, result.stdout) == (0, "", "done\n")
    assert not list(tmp_path.rglob("failures.log"))


def test_environment_process_makes_a_local_class_by_a_lambda() -> None:
    class Local(envs.Clock):
        def step(self, action: Any) -> envs.Step:
            *outcome, _ = super().step(action)
            return (*outcome, {"class": Local, "lambda": lambda: None})  # type: ignore[return-value]

    processes.preload("hogwild_rl.envs.env_process")
    venv = ProcessVectorEnv(lambda: Local(True), 2)
    try:
        venv.reset(seed=0)
        observations, rewards, *_ = venv.step(np.zeros(2, dtype=np.int64))
        assert observations.argmax(axis=1).tolist() == [1, 1]
        assert rewards.tolist() == [1, 1]
    finally:
        venv.close()


SCRIPT = """
import functools
class Shared: pass
def shared(): pass
anonymous = lambda: 1
def closure():
    class Local: pass
    return Local
class Redefined: pass
before = Redefined
class Redefined: pass
if __name__ == "__main__":
    class Own:
        class Inner: pass
    def own(): pass
"""


@pytest.fixture
def main(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a script as the main module of this process; returns the module."""

    def main(text: str, file: bool = True) -> Any:
        path = tmp_path / "script.py"
        path.write_text(text)
        module = types.ModuleType("__main__")
        if file:
            module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, "__main__", module)
        exec(compile(text, path, "exec"), module.__dict__)
        return module

    return main


def load_as_child(data: bytes, main: Any) -> Any:
    """Unpickles in this process, where the main module has become another one."""
    sys.modules["__main__"] = main
    return pickle.loads(data)


@pytest.mark.parametrize("name", ["Shared", "shared"])
def test_contents_of_a_script_are_pickled_by_name(name: str, main: Callable[..., Any]) -> None:
    data = pickling.dumps(getattr(main(SCRIPT), name))
    again = types.ModuleType("__main__")
    setattr(again, name, "imported again")
    assert load_as_child(data, again) == "imported again"


@pytest.mark.parametrize("name", ["Own", "Own.Inner", "own", "anonymous", "Local", "before"])
def test_contents_of_a_script_that_a_child_lacks_are_pickled_by_value(
    name: str, main: Callable[..., Any]
) -> None:
    module = main(SCRIPT)
    module.Local = module.closure()
    value = operator.attrgetter(name)(module)
    loaded = load_as_child(pickling.dumps(value), types.ModuleType("__main__"))
    assert loaded.__qualname__ == value.__qualname__


@pytest.mark.parametrize("name", ["Shared", "shared", "Own", "anonymous"])
def test_contents_of_a_notebook_are_pickled_by_value(name: str, main: Callable[..., Any]) -> None:
    data = pickling.dumps(getattr(main(SCRIPT, file=False), name))
    assert load_as_child(data, types.ModuleType("__main__")).__qualname__


@pytest.mark.parametrize("spec", ["package.__main__", "__main__"])
def test_contents_of_a_main_module_that_is_not_imported_again_are_pickled_by_value(
    spec: str, main: Callable[..., Any]
) -> None:
    module = main(SCRIPT)
    module.__spec__ = importlib.util.spec_from_loader(spec, loader=None)
    data = pickling.dumps(module.Shared)
    assert load_as_child(data, types.ModuleType("__main__")).__name__ == "Shared"


def test_contents_of_ipython_are_pickled_by_value(
    main: Callable[..., Any], tmp_path: pathlib.Path
) -> None:
    module = main(SCRIPT)
    module.__file__ = str((tmp_path / "script.py").rename(tmp_path / "ipython"))
    data = pickling.dumps(module.Shared)
    assert load_as_child(data, types.ModuleType("__main__")).__name__ == "Shared"


def test_contents_of_a_program_of_this_package_are_pickled_by_name(tmp_path: pathlib.Path) -> None:
    """As ``python -m hogwild_rl.a3c`` is run: its Config is not copied."""
    program = (
        "import runpy, sys\n"
        "from hogwild_rl.hogwild import child, pickling\n"
        "child.Child = lambda *arguments: sys.exit(b'cloudpickle' in pickling.dumps(arguments))\n"
        "sys.argv[1:] = ['--total-timesteps', '1000', '--quiet']\n"
        "runpy.run_module('hogwild_rl.a3c', run_name='__main__', alter_sys=True)\n"
    )
    result = run_program(tmp_path, "-c", program)
    assert (result.returncode, result.stderr) == (0, "")


def test_open_file_in_a_lambda_gives_a_one_line_error(tmp_path: pathlib.Path) -> None:
    expected = r"cannot be sent to workers \(cannot pickle '.*FileIO' .*\): create such"
    with (
        (tmp_path / "file").open("wb", buffering=0) as file,
        pytest.raises(UserError, match=expected) as caught,
    ):
        make.inspect_env(lambda: envs.Clock(bool(file)))
    assert "\n" not in str(caught.value)


def test_error_of_several_lines_becomes_one() -> None:
    class Unpicklable:
        def __reduce__(self) -> Any:
            raise ValueError("first line\nsecond line")

    with pytest.raises(UserError, match="first line second line") as caught:
        make.inspect_env(functools.partial(envs.Clock, Unpicklable()))
    assert "\n" not in str(caught.value)


TRAIN = """
from hogwild_rl.config import resources
def train():
    resources.check_workers(1)
"""
REFUSED = {  # with the line of the message; the first is 5
    "plain": (5, "train()"),
    "several lines": (6, "print(\n    train(),\n)"),
    "in a function": (7, "def main():\n    train()\nmain()"),
    "in a method": (8, "class A:\n    def __init__(self):\n        train()\nA()"),
    "other condition": (6, "if len('name'):\n    train()"),
    "after a guard": (7, "if __name__ == '__main__':\n    pass\ntrain()"),
    "executed": (5, "exec('train()')"),
    "thread": (
        6,
        "import concurrent.futures as f\nf.ThreadPoolExecutor(1).submit(train).result()",
    ),
}
ACCEPTED = {
    "guard": "if __name__ == '__main__':\n    train()",
    "guard around a function": "def main():\n    train()\nif '__main__' == __name__:\n    main()",
    "else": "if __name__ != '__main__':\n    pass\nelse:\n    train()",
    "parent process": "import multiprocessing as m\nif m.parent_process() is None:\n    train()",
    "name of process": "from multiprocessing import current_process as c\n"
    "if c().name == 'MainProcess':\n    train()",
    "nested": "if __name__ == '__main__':\n    for _ in range(2):\n        train()",
    "guard in a block": "try:\n    if __name__ == '__main__':\n        train()\nfinally:\n    pass",
    "one line": "if __name__ == '__main__': train()",
    "other run of the file": "import runpy\nif __name__ == '__main__':\n"
    "    runpy.run_path(__file__, {'copied': True})\nif 'copied' in globals():\n    train()",
}


@pytest.mark.parametrize("name", REFUSED)
def test_script_without_guard_is_refused(name: str, main: Callable[..., Any]) -> None:
    line, text = REFUSED[name]
    expected = rf'script.py, line {line}: call train\(\) inside `if __name__ == "__main__":`'
    with pytest.raises(UserError, match=expected):
        main(TRAIN + text)


@pytest.mark.parametrize("name", ACCEPTED)
def test_script_with_guard_is_accepted(name: str, main: Callable[..., Any]) -> None:
    main(TRAIN + ACCEPTED[name])


def test_program_without_file_and_unreadable_script_are_accepted(
    main: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(TRAIN + "train()", file=False)

    def unreadable(module: Any) -> str:
        raise OSError

    monkeypatch.setattr(inspect, "getsource", unreadable)
    main(TRAIN + "train()")


@pytest.mark.parametrize("arguments", [("-m", "script"), ("script.py",)])
def test_script_without_guard_gives_one_error_and_no_folder(
    arguments: tuple[str, ...], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "script.py").write_text(
        "from hogwild_rl import a3c\n"
        "from hogwild_rl.config import cli\n"
        "cli.run(lambda: a3c.train(a3c.Config(workers=2, total_timesteps=1000)))\n"
    )
    result = run_program(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "script.py, line 3: call train() inside" in result.stderr
    assert not (tmp_path / "runs").exists()
