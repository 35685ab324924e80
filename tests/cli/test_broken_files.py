"""Files and folders that cannot be used get one line, and stay as they are."""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import hogwild_rl
from hogwild_rl import a3c, td3
from hogwild_rl.errors import UserError
from hogwild_rl.runs import files
from hogwild_rl.runs.checkpoint import FORMAT, Checkpoint
from tests.cli.conftest import Command

Damage = Callable[[pathlib.Path], None]
FURTHER = ("--total-timesteps", "10000")


def writes(name: str, content: bytes | str) -> Damage:
    """The file holds this."""
    plain = content.encode() if isinstance(content, str) else content
    return lambda run: (run / name).write_bytes(plain) and None


def emptied(name: str) -> Damage:
    return lambda run: (run / name).write_bytes(b"") and None


def folder(name: str) -> Damage:
    """A folder has the file's name."""

    def damage(run: pathlib.Path) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir()

    return damage


def setting(name: str, value: Any) -> Damage:
    """settings.json has another value."""

    def damage(run: pathlib.Path) -> None:
        document = json.loads((run / "settings.json").read_text())
        document["settings"][name] = value
        (run / "settings.json").write_text(json.dumps(document))

    return damage


def sealed(run: pathlib.Path, document: Any, name: str = "checkpoint.pt") -> None:
    """A file whose digest is right, whatever it holds: anybody can compute one."""
    with (run / "torch.pt").open("wb") as file:
        torch.save(document, file)
    files.write_with_digest(run / name, (run / "torch.pt").read_bytes())
    (run / "torch.pt").unlink()


def document_of(run: pathlib.Path) -> Any:
    with (run / "torch.pt").open("wb") as file:
        file.write(files.read_with_digest(run / "checkpoint.pt"))
    document = torch.load(run / "torch.pt", weights_only=True)
    (run / "torch.pt").unlink()
    return document


def field(name: str, value: Any) -> Damage:
    """A field of the checkpoint's document has another value; None: it is missing."""

    def damage(run: pathlib.Path) -> None:
        document = document_of(run)
        if value is None:
            del document[name]
        else:
            document[name] = value
        sealed(run, document)

    return damage


def part(name: str, key: str, value: Any) -> Damage:
    """A part of such a field has another value; None: it is missing."""

    def damage(run: pathlib.Path) -> None:
        document = document_of(run)
        if value is None:
            del document[name][key]
        else:
            document[name][key] = value
        sealed(run, document)

    return damage


NO_CHECKPOINT = "is not a checkpoint of hogwild_rl, or it is damaged"

# Of a checkpoint: printed by --resume and by evaluate alike.
CHECKPOINTS: dict[str, tuple[Damage, str]] = {
    "empty": (emptied("checkpoint.pt"), NO_CHECKPOINT),
    "words": (writes("checkpoint.pt", "once upon a time"), NO_CHECKPOINT),
    "a folder": (folder("checkpoint.pt"), "checkpoint.pt cannot be read (Is a directory)"),
    "not sealed": (lambda run: torch.save({}, run / "checkpoint.pt"), NO_CHECKPOINT),
    "nothing in it": (lambda run: sealed(run, {}), NO_CHECKPOINT),
    "a tensor": (lambda run: sealed(run, torch.zeros(3)), NO_CHECKPOINT),
    "an older version": (
        field("format", "hogwild_rl-2"),
        f"has format 'hogwild_rl-2', this version reads {FORMAT}: read it with the version that",
    ),
    "a newer version": (field("format", "hogwild_rl-99"), "has format 'hogwild_rl-99', this"),
    "another program's format": (field("format", "other-1"), NO_CHECKPOINT),
    "no format": (field("format", None), NO_CHECKPOINT),
    "no parameters": (field("parameters", None), NO_CHECKPOINT),
    "a list of parameters": (field("parameters", [1.0]), NO_CHECKPOINT),
    "settings that are none": (field("settings", "fast"), NO_CHECKPOINT),
    "no counters": (field("counters", None), NO_CHECKPOINT),
    "counters of words": (part("counters", "steps", "many"), NO_CHECKPOINT),
    "unknown counters": (part("counters", "colour", 3), NO_CHECKPOINT),
    "no space": (field("action_space", None), NO_CHECKPOINT),
    "a space of no kind": (part("action_space", "kind", "Sphere"), NO_CHECKPOINT),
    "a space of no choices": (part("action_space", "n", -1), NO_CHECKPOINT),
    "a space of words": (part("action_space", "n", "two"), NO_CHECKPOINT),
    "a space of objects": (part("observation_space", "dtype", "object"), NO_CHECKPOINT),
    "a parameter is missing": (
        part("parameters", "value_head.bias", None),
        "the checkpoint's parameters do not fit its settings",
    ),
    "a parameter of another shape": (
        part("parameters", "value_head.bias", torch.zeros(7)),
        "the checkpoint's parameters do not fit its settings",
    ),
    "a parameter is a word": (
        part("parameters", "value_head.bias", "large"),
        "the checkpoint's parameters do not fit its settings",
    ),
}

# Of what else a resumed run is read from.
RUNS: dict[str, tuple[Damage, str]] = {
    "settings.json empty": (emptied("settings.json"), "settings.json cannot be read"),
    "settings.json torn": (writes("settings.json", "{"), "settings.json cannot be read"),
    "settings.json a list": (writes("settings.json", "[]"), "settings.json cannot be read"),
    "settings.json of bytes": (writes("settings.json", b"\xff\xfe\x00"), "cannot be read"),
    "settings.json a number": (
        writes("settings.json", '{"algorithm": "a3c", "settings": 3}'),
        "settings.json cannot be read",
    ),
    "settings.json deep": (writes("settings.json", "[" * 100_000), "settings.json cannot be read"),
    "settings.json a folder": (folder("settings.json"), "settings.json cannot be read"),
    "no settings.json": (lambda run: (run / "settings.json").unlink(), "has no settings.json"),
    "an unknown setting": (setting("colour", "red"), "unknown settings ['colour']"),
    "workers many": (setting("workers", "many"), "workers must be an integer, got 'many'"),
    "workers 1.5": (setting("workers", 1.5), "workers must be an integer, got 1.5"),
    "gamma null": (setting("gamma", None), "gamma must be a number, got None"),
    "gamma true": (setting("gamma", True), "gamma must be a number, got True"),
    "hidden wide": (setting("hidden", "wide"), "hidden must be integers, got 'wide'"),
    "hidden nested": (setting("hidden", [[64]]), "hidden must be integers, got"),
    "activation a list": (setting("activation", ["tanh"]), "activation must be tanh, relu, got"),
    "env a number": (setting("env", 7), "must be a string, got 7"),
    "env unknown": (setting("env", "CartPol-v1"), "unknown environment 'CartPol-v1'"),
    "env of many lines": (setting("env", "Cart\nPole-v1"), "unknown environment 'Cart"),
    "another env": (setting("env", "Acrobot-v1"), "env of run"),
    "quiet maybe": (setting("quiet", "maybe"), "quiet must be true or false, got 'maybe'"),
    "progress.csv of bytes": (writes("progress.csv", b"\xff\xfe"), "progress.csv cannot be read"),
    "progress.csv a folder": (folder("progress.csv"), "progress.csv cannot be read"),
    "progress.csv of words": (
        writes("progress.csv", 2 * ("many," * 14 + "many\n")),
        "repair or remove it",
    ),
    "optimizer of another": (field("optimizer", {"state": {}}), "do not fit its settings"),
    "a worker_state of words": (field("worker_state", "late"), NO_CHECKPOINT),
    "best.pt torn": (writes("best.pt", "torn"), f"best.pt {NO_CHECKPOINT}"),
    "best.pt a folder": (folder("best.pt"), "best.pt cannot be read"),
}


def everything_in(run: pathlib.Path) -> dict[str, bytes | None]:
    return {p.name: None if p.is_dir() else p.read_bytes() for p in run.iterdir()}


@pytest.mark.parametrize(("damage", "printed"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_damaged_checkpoint_gets_one_line(
    damage: Damage, printed: str, refused: Command, run: pathlib.Path
) -> None:
    """Resumed, played and loaded; nothing is changed."""
    (run / "checkpoint.previous.pt").unlink(missing_ok=True)
    damage(run)
    before = everything_in(run)
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    assert printed in refused("evaluate", str(run))
    with pytest.raises(UserError):
        hogwild_rl.load(run)
    assert everything_in(run) == before


@pytest.mark.parametrize(("damage", "printed"), RUNS.values(), ids=RUNS)
def test_a_damaged_run_gets_one_line(
    damage: Damage, printed: str, refused: Command, run: pathlib.Path
) -> None:
    """Where it is resumed; nothing is changed."""
    damage(run)
    before = everything_in(run)
    assert printed in refused("a3c", "--resume", str(run), *FURTHER)
    assert everything_in(run) == before


@pytest.mark.parametrize(
    "worker_state",
    [
        {},
        {"carried": 3, "envs": []},
        {"carried": {}, "envs": [{}], "generator": "seed", "discounted": None},
        {"envs": [{"is": "object", "parts": {"envs": {"is": "plain", "value": "none"}}}]},
    ],
)
def test_a_foreign_recall_begins_anew(worker_state: Any, run: pathlib.Path) -> None:
    """Where a single worker stood is worth nothing then; the run goes on without it."""
    kept = document_of(run)["worker_state"]
    field("worker_state", {**kept, **worker_state} if worker_state else {})(run)
    agent = a3c.train(a3c.Config(resume=str(run), total_timesteps=5_000, quiet=True))
    assert agent.checkpoint.counters.steps >= 5_000
    assert not (run / "failures.log").exists()


@pytest.mark.parametrize("content", [b"", b"torn", None])
def test_a_damaged_replay_gets_one_line(
    content: bytes | None, refused: Command, tmp_path: pathlib.Path
) -> None:
    run = tmp_path / "run"
    few = {"total_timesteps": 300, "learning_starts": 100, "hidden": (8,), "buffer_size": 1000}
    kept = {"batch_size": 8, "save_replay": True, "quiet": True, "run_dir": str(run)}
    td3.train(td3.Config(env="Pendulum-v1", **few, **kept))
    if content is None:
        torch.save(torch.zeros(3), run / "replay_0.pt")
    else:
        (run / "replay_0.pt").write_bytes(content)
    before = everything_in(run)
    said = refused("td3", "--resume", str(run), "--total-timesteps", "500")
    assert "replay_0.pt is not a valid replay buffer: remove it to start" in said
    assert everything_in(run) == before


@pytest.mark.parametrize("seed", range(60))
def test_a_checkpoint_with_any_bytes_changed_is_loaded_or_refused(
    seed: int, trained: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """And sealed anew, so that the digest tells nothing; no other exception comes of it."""
    rng = np.random.default_rng(seed)
    content = bytearray(files.read_with_digest(trained / "checkpoint.pt"))
    document = content.index(b"format")  # the pickle, with all that has a structure, is in front
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(max(0, document - 100), document + 4000)] = rng.integers(256)
    files.write_with_digest(tmp_path / "changed.pt", bytes(content))
    with contextlib.suppress(UserError):
        hogwild_rl.load(tmp_path / "changed.pt")


def test_a_file_that_nobody_may_read_gets_one_line(
    run: pathlib.Path, public: pathlib.Path, refused_unprivileged: Command
) -> None:
    """The user is another one than root, who may read all."""
    opened = copied(run, public / "run")
    (opened / "checkpoint.pt").chmod(0)
    (opened / "checkpoint.previous.pt").unlink(missing_ok=True)
    printed = "checkpoint.pt cannot be read (Permission denied)"
    assert printed in refused_unprivileged("evaluate", str(opened))
    assert printed in refused_unprivileged("a3c", "--resume", str(opened), *FURTHER)
    (opened / "settings.json").chmod(0)
    printed = "settings.json cannot be read"
    assert printed in refused_unprivileged("a3c", "--resume", str(opened), *FURTHER)


def test_a_folder_that_nobody_may_write_gets_one_line(
    run: pathlib.Path, public: pathlib.Path, refused_unprivileged: Command
) -> None:
    """A run in it is not resumed, nor is a new one begun."""
    opened = copied(run, public / "run")
    opened.chmod(0o555)
    before = everything_in(opened)
    printed = "cannot be written (Permission denied)"
    assert printed in refused_unprivileged("a3c", "--resume", str(opened), *FURTHER)
    assert printed in refused_unprivileged("a3c", "--run-dir", str(public / "new"))
    assert printed in refused_unprivileged("a3c", "--run-dir", str(opened / "new"))
    assert everything_in(opened) == before


def copied(run: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """The same run, which anybody may read."""
    to.mkdir()
    for path in run.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
        (to / path.name).chmod(0o644)
    to.chmod(0o755)
    return to


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("file", "cannot be written (File exists)"),
        ("file/run", "cannot be written (Not a directory)"),
        ("full", "full is not empty: name a new folder, or --resume"),
        ("x" * 300, "cannot be written (File name too long)"),
        ("", "is not empty: name a new folder"),
    ],
)
def test_a_folder_that_no_run_can_have_gets_one_line(
    name: str, printed: str, refused: Command, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("mine")
    assert printed in refused("a3c", "--run-dir", str(tmp_path / name))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full", "mine"]


def test_a_whole_number_may_be_written_as_a_power_of_ten() -> None:
    config = a3c.Config(total_timesteps=1e6)
    assert config.total_timesteps == 1_000_000
    assert type(config.total_timesteps) is int


def test_a_checkpoint_keeps_nothing_of_how_it_was_started(trained: pathlib.Path) -> None:
    """Neither its folder's name nor what was allowed then."""
    kept = dataclasses.asdict(Checkpoint.load(trained / "checkpoint.pt"))["settings"]
    assert not kept.keys() & {"run_dir", "resume", "allow_import"}
