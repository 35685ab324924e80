"""What comes from elsewhere runs no code by being loaded, resumed, evaluated or drawn."""

import dataclasses
import importlib
import json
import pathlib
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, td3
from hogwild_rl.config import cli
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files
from hogwild_rl.runs.checkpoint import Checkpoint
from tests import envs
from tests.cli.conftest import PROGRAMS, Command

FURTHER = ("--total-timesteps", "10000")
MARK = "owned"


@pytest.fixture
def mark(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pathlib.Path]:
    """A file that is written when the module `intruder` is imported, or a payload is run."""
    mark = tmp_path / MARK
    text = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\ndef make(space): ...\n"
    (tmp_path / "intruder.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("intruder", None)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: pathlib.Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return pathlib.Path.touch, (self._mark,)


def claiming(run: pathlib.Path, **values: Any) -> None:
    """Has settings and checkpoints of a run say so."""
    document = json.loads((run / "settings.json").read_text())
    document["settings"].update(values)
    (run / "settings.json").write_text(json.dumps(document))
    for path in run.glob("*.pt"):
        saved = Checkpoint.load(path)
        settings = {**saved.settings, **values}
        dataclasses.replace(saved, settings=settings).save(path)


def test_the_mark_is_left_by_what_runs(mark: pathlib.Path) -> None:
    """Or these tests could not fail."""
    importlib.import_module("intruder")
    assert mark.exists()
    mark.unlink()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("program", ["a3c", "evaluate"])
def test_a_module_that_a_run_names_is_not_imported(
    program: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    """The line says which, and what allows it."""
    claiming(run, env="intruder:CartPole-v1")
    flags = ["--resume", str(run), *FURTHER] if program == "a3c" else [str(run)]
    said = refused(program, *flags)
    assert "names env 'intruder:CartPole-v1', for which module 'intruder' would be imported" in said
    assert "if you trust it, give --allow-import (allow_import=True in Python), or give env" in said
    assert not mark.exists()


def test_the_next_command_after_a_run_of_a_module_works(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the switch, since the person who reads it named the module."""
    run = str(tmp_path / "run")
    a3c.train(a3c.Config(env="tests.envs:Chain-v0", workers=1, total_timesteps=500, run_dir=run))
    printed = re.search(r"next: .*hogwild_rl\.(evaluate .*)\n", capsys.readouterr().out)
    assert printed
    program, *flags = printed[1].split()
    assert "--allow-import" in flags
    monkeypatch.setattr(sys, "argv", [program, *flags])
    with pytest.raises(SystemExit) as ending:
        cli.run(PROGRAMS[program])
    assert ending.value.code == 0
    assert "over 20 episodes" in capsys.readouterr().out


def test_a_module_is_imported_if_that_is_allowed(
    run: pathlib.Path,
    mark: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By a switch, or by naming it by hand."""
    claiming(run, env="intruder:CartPole-v1")
    resumed = ["a3c", "--resume", str(run), "--quiet"]
    for argv in (
        ["evaluate", str(run), "--episodes", "1", "--allow-import"],
        ["evaluate", str(run), "--episodes", "1", "--env", "intruder:CartPole-v1"],
        [*resumed, "--total-timesteps", "10000", "--allow-import"],
        [*resumed, "--total-timesteps", "20000", "--env", "intruder:CartPole-v1"],
    ):
        monkeypatch.setattr(sys, "argv", argv)
        sys.modules.pop("intruder", None)
        with pytest.raises(SystemExit) as ending:
            cli.run(PROGRAMS[argv[0]])
        assert ending.value.code == 0, capsys.readouterr()
        assert mark.exists()
        mark.unlink()
    kept = Checkpoint.load(run / "checkpoint.pt").settings | json.loads(
        (run / "settings.json").read_text()
    )
    assert "allow_import" not in str(kept)


def test_from_python_it_has_to_be_allowed_too(run: pathlib.Path, mark: pathlib.Path) -> None:
    claiming(run, env="intruder:CartPole-v1")
    agent = hogwild_rl.load(run)
    with pytest.raises(UserError, match="module 'intruder' would be imported"):
        agent.evaluate(1)
    with pytest.raises(UserError, match="module 'intruder' would be imported"):
        agent.make_env()
    with pytest.raises(UserError, match="module 'intruder' would be imported"):
        a3c.Config(resume=str(run), total_timesteps=10_000)
    assert agent.evaluate(1, env="CartPole-v1").shape == (1,)
    assert not mark.exists()
    assert hogwild_rl.load(run, allow_import=True).evaluate(1).shape == (1,)
    assert mark.exists()


@pytest.mark.parametrize("program", ["a2c", "a3c", "ddpg", "reinforce", "td3"])
def test_a_file_cannot_allow_it_itself(
    program: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    """Whatever algorithm the run claims to be of."""
    claiming(run, env="intruder:CartPole-v1", allow_import=True)
    document = json.loads((run / "settings.json").read_text())
    (run / "settings.json").write_text(json.dumps({**document, "algorithm": program}))
    said = refused(program, "--resume", str(run), *FURTHER)
    assert "module 'intruder' would be imported" in said
    assert not mark.exists()


@pytest.mark.parametrize(
    "env", ["intruder:CartPole-v1", ":intruder:CartPole-v1", "intruder:", "CartPole-v1:intruder:x"]
)
@pytest.mark.parametrize("where", ["settings", "checkpoint"])
def test_no_spelling_of_it_imports(
    env: str, where: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    """Also where only one of the two files says so."""
    claimed = run.parent / "claimed"
    run.rename(claimed)
    before = (claimed / "settings.json").read_text()
    kept = {path: path.read_bytes() for path in claimed.glob("*.pt")}
    claiming(claimed, env=env)
    if where == "checkpoint":
        (claimed / "settings.json").write_text(before)
    else:
        for path, content in kept.items():
            path.write_bytes(content)
    refused("a3c", "--resume", str(claimed), *FURTHER)
    if where == "checkpoint":
        refused("evaluate", str(claimed))
    assert not mark.exists()


@pytest.mark.parametrize("network", ["intruder:make", "intruder.make", "intruder"])
def test_a_function_that_a_run_names_is_not_imported(
    network: str, refused: Command, run: pathlib.Path, mark: pathlib.Path
) -> None:
    claiming(run, network=network)
    printed = f"network {network} is"
    assert printed in refused("evaluate", str(run))
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    with pytest.raises(UserError, match=re.escape(printed)):
        hogwild_rl.load(run)
    assert not mark.exists()


def test_a_picture_of_a_run_imports_nothing(
    run: pathlib.Path,
    mark: pathlib.Path,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads settings.json and progress.csv, and no checkpoint at all."""
    claiming(run, env="intruder:CartPole-v1", network="intruder:make")
    for path in run.glob("*.pt"):
        path.write_bytes(pickle.dumps(Payload(mark)))
    monkeypatch.setattr(sys, "argv", ["plot", str(run), "--output", str(tmp_path / "curves.png")])
    with pytest.raises(SystemExit) as ending:
        cli.run(PROGRAMS["plot"])
    assert ending.value.code == 0
    assert not mark.exists()


def torch_pickled(content: Any, path: pathlib.Path) -> None:
    torch.save(content, path)


def plainly_pickled(content: Any, path: pathlib.Path) -> None:
    path.write_bytes(pickle.dumps(content))


FIELDS = ("format", "settings", "action_space", "parameters", "optimizer", "counters", "more")


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint.previous.pt", "best.pt"])
@pytest.mark.parametrize("pickled", [torch_pickled, plainly_pickled])
@pytest.mark.parametrize("field", [*FIELDS, ""])
def test_a_checkpoint_cannot_run_code(
    name: str,
    pickled: Callable[[Any, pathlib.Path], None],
    field: str,
    refused: Command,
    run: pathlib.Path,
    mark: pathlib.Path,
) -> None:
    """Sealed as ours are, so that it is the unpickler that refuses."""
    (run / "raw.pt").write_bytes(files.read_with_digest(run / "checkpoint.pt"))
    document = torch.load(run / "raw.pt", weights_only=True)
    payload = Payload(mark)
    pickled({**document, field: payload} if field else payload, run / "raw.pt")
    if name != "best.pt":
        for other in ("checkpoint.pt", "checkpoint.previous.pt"):
            (run / other).unlink(missing_ok=True)
    files.write_with_digest(run / name, (run / "raw.pt").read_bytes())
    printed = "is not a checkpoint of hogwild_rl, or it is damaged"
    assert printed in refused("evaluate", str(run / name))
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    with pytest.raises(UserError, match=printed):
        hogwild_rl.load(run / name)
    assert not mark.exists()


@pytest.mark.parametrize("pickled", [torch_pickled, plainly_pickled])
def test_a_replay_cannot_run_code(
    pickled: Callable[[Any, pathlib.Path], None],
    refused: Command,
    tmp_path: pathlib.Path,
    mark: pathlib.Path,
) -> None:
    run = tmp_path / "run"
    few = {"total_timesteps": 300, "learning_starts": 100, "hidden": (8,), "buffer_size": 1000}
    kept = {"batch_size": 8, "save_replay": True, "quiet": True, "run_dir": str(run)}
    td3.train(td3.Config(env="Pendulum-v1", **few, **kept))
    state = torch.load(run / "replay_0.pt", weights_only=True)
    pickled({**state, "_row": Payload(mark)}, run / "replay_0.pt")
    said = refused("td3", "--resume", str(run), "--total-timesteps", "500")
    assert "replay_0.pt is not a valid replay buffer" in said
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("env", "../../../{outside}"),
        ("env", "{outside}"),
        ("run_dir", "{outside}"),
        ("resume", "{outside}"),
        ("tensorboard", "{outside}"),
    ],
)
def test_a_path_in_a_run_leads_nowhere(
    name: str, value: str, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Whether it is refused or passed over, nothing appears where it points to."""
    outside = tmp_path / "outside"
    claiming(run, **{name: value.format(outside=outside)})
    inside = {path.name for path in tmp_path.iterdir()}
    try:
        a3c.train(a3c.Config(resume=str(run), total_timesteps=5_000, quiet=True))
    except UserError as error:
        assert name in ("env", "tensorboard"), error  # noqa: PT017  either may happen
    assert {path.name for path in tmp_path.iterdir()} == inside


LINKED = ("failures.log", "staleness.csv", "progress.csv", "settings.json", ".probe", "best.pt")


@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_a_run_is_not_written_through(
    name: str, run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A folder from elsewhere may hold one that leads to what is dear to whoever resumes it."""
    dear = tmp_path / "dear"
    dear.write_bytes((run / name).read_bytes() if (run / name).exists() else b"dear")
    before = dear.read_bytes()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(dear)
    a3c.train(a3c.Config(resume=str(run), total_timesteps=8_000, quiet=True))
    assert dear.read_bytes() == before


def test_a_failure_is_not_told_through_a_link(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    dear = tmp_path / "dear"
    dear.write_text("dear")
    (run / "failures.log").symlink_to(dear)
    with pytest.raises(OSError, match=r"symbolic link|[Ss]ymlink|loop"):
        files.append_text(run / "failures.log", "worker 0 failed\n")
    assert dear.read_text() == "dear"
    files.append_text(run / "other.log", "one\n")
    files.append_text(run / "other.log", "two\n")
    assert (run / "other.log").read_text() == "one\ntwo\n"


def test_an_agent_in_memory_knows_where_it_was_trained(tmp_path: pathlib.Path) -> None:
    """What a program itself named needs no further word."""
    settings: dict[str, Any] = {"workers": 1, "total_timesteps": 500, "quiet": True}
    for number, env in enumerate(("tests.envs:Chain-v0", envs.Chain)):
        run = str(tmp_path / f"run{number}")
        agent = a3c.train(a3c.Config(env=env, run_dir=run, **settings))
        assert agent.evaluate(2).shape == (2,)
