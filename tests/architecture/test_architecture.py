"""Tests of import contracts, public names, docstrings, file sizes, and imported packages."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys

import pytest

import hogwild_rl

PACKAGE = pathlib.Path(hogwild_rl.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(PACKAGE)], prefix="hogwild_rl.")
)


def source(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def lint_imports(root: pathlib.Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()")
    return subprocess.run(
        (*command, "--no-cache"), cwd=root, capture_output=True, text=True, check=False
    )


def test_imports_follow_the_contracts() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("hogwild/supervisor.py", "from gymnasium import spaces"),
        ("hogwild/supervisor.py", "import gymnasium.spaces as spaces"),
        ("hogwild/supervisor.py", "from hogwild_rl.errors import UserError as Error"),
        ("envs/make.py", "from hogwild_rl.collect import rollout"),
        ("learn/returns.py", "def late():\n    from hogwild_rl.config import base"),
        ("a3c.py", "from hogwild_rl import a2c"),
    ],
)
def test_an_import_that_breaks_a_contract_is_detected(
    module: str, statement: str, tmp_path: pathlib.Path
) -> None:
    shutil.copytree(PACKAGE, tmp_path / "hogwild_rl")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "hogwild_rl" / module).open("a") as file:
        file.write(f"\n{statement}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert "BROKEN" in result.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import threading\n\nlock = threading.Lock()",
        "from threading import Lock",
        "from threading import RLock as Harmless",
        "import threading as t\n\nlock = t.RLock()",
        "import multiprocessing\n\nqueue = multiprocessing.Queue()",
        "from multiprocessing import Value",
    ],
)
def test_the_linter_rejects_locks(code: str) -> None:
    """A worker that is killed while it holds a lock would block all others."""
    command = (sys.executable, "-m", "ruff", "check", "--select", "TID251", "--no-cache")
    name = ("--stdin-filename", str(PACKAGE / "hogwild" / "locked.py"), "-")
    result = subprocess.run(
        (*command, *name), input=code, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "TID251" in result.stdout


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hogwild_rl", {"torch", "gymnasium", "numpy", "tyro"}),
        # The fork server imports torch while the parent does: it must start before.
        ("hogwild_rl.training.startup", {"torch", "gymnasium"}),
    ],
)
def test_import_does_not_load_slow_packages(module: str, absent: set[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "hogwild_rl" in loaded
    assert not loaded & absent


def test_public_names_are_documented() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__, name
        for label, member in vars(module).items():
            own = getattr(member, "__module__", None) == name
            if own and not label.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{name}.{label}"


def test_every_module_is_in_the_api_reference() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    for name in MODULES:
        path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if path.exists() and path.name != "__main__.py":
            assert f"::: {name}\n" in pages, name


def test_docstrings_do_not_start_with_a_question_word() -> None:
    question = re.compile(r"(What|Whether|Who|How|Where|Whose|Which)\b")
    for name in MODULES:
        for node in ast.walk(source(name)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                assert not question.match(docstring), f"{name}: {docstring.splitlines()[0]}"


def test_files_and_functions_are_short() -> None:
    for module in MODULES:
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        if path.exists():
            assert len(path.read_text().splitlines()) <= 400, module
            for node in ast.walk(source(module)):
                if isinstance(node, ast.FunctionDef):
                    body = node.end_lineno - node.body[0].lineno
                    assert body <= 60, f"{module}.{node.name} has {body} lines"


def test_no_variable_is_named_done() -> None:
    for module in MODULES:
        names = {node.id for node in ast.walk(source(module)) if isinstance(node, ast.Name)}
        assert not names & {"done", "dones"}, module


def test_public_names_of_the_package_can_be_imported() -> None:
    for name in hogwild_rl.__all__:
        assert getattr(hogwild_rl, name) is not None
    assert set(hogwild_rl.__all__) <= set(dir(hogwild_rl))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hogwild_rl.nothing  # noqa: B018
