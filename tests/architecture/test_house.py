"""Who may import whom, what is documented, and what an import costs."""

import ast
import importlib
import inspect
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import hogwild_rl

PACKAGE = pathlib.Path(hogwild_rl.__file__).parent
PROGRAMS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}

# Each part may import the parts named here, besides itself.
MAY_IMPORT = {
    "hogwild": set(),
    "envs": set(),
    "models": {"envs"},
    "learning": {"envs", "models"},
    "runs": {"hogwild", "envs", "models", "learning"},
    "evaluate": {"envs", "models", "learning", "runs"},
    "a2c": {"hogwild", "envs", "models", "learning", "runs"},
    "reinforce": {"hogwild", "envs", "models", "learning", "runs"},
    "ddpg": {"hogwild", "envs", "models", "learning", "runs"},
    "td3": {"hogwild", "envs", "models", "learning", "runs"},
    "plot": {"runs"},
    "a3c": {"hogwild", "envs", "models", "learning", "runs"},
}
MODULES = sorted(
    module.name for module in pkgutil.walk_packages([str(PACKAGE)], prefix="hogwild_rl.")
)


def part(module: str) -> str:
    return module.split(".")[1]


def source(module: str) -> ast.Module:
    path = PACKAGE.parent.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text())


def imports(module: str) -> set[str]:
    """Parts of the package that a module imports anywhere in it."""
    found = set()
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hogwild_rl"):
            dotted = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names if alias.name.startswith("hogwild_rl.")]
        else:
            continue
        found |= {name.split(".")[1] for name in dotted}
    return found & (MAY_IMPORT.keys() | PROGRAMS)


def test_every_part_is_known_to_the_import_rule() -> None:
    assert {part(module) for module in MODULES} == MAY_IMPORT.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_rule(module: str) -> None:
    assert imports(module) <= MAY_IMPORT[part(module)] | {part(module)}


@pytest.mark.parametrize("program", sorted(PROGRAMS))
def test_programs_never_import_each_other(program: str) -> None:
    assert not imports(f"hogwild_rl.{program}") & (PROGRAMS - {program})


def test_the_runtime_knows_nothing_of_us() -> None:
    for module in MODULES:
        if part(module) == "hogwild":
            assert imports(module) <= {"hogwild"}
            names = {node.id for node in ast.walk(source(module)) if isinstance(node, ast.Name)}
            assert not names & {"gymnasium", "reward", "action", "observation", "UserError"}


def test_nothing_a_dead_process_could_hold() -> None:
    forbidden = {"Lock", "RLock", "Queue", "Value", "Semaphore", "Condition", "Barrier", "Manager"}
    for module in MODULES:
        for node in ast.walk(source(module)):
            if isinstance(node, ast.Attribute) and node.attr in forbidden:
                assert ast.unparse(node) == "threading.RLock", f"{module}: {ast.unparse(node)}"


def test_importing_the_package_loads_neither_torch_nor_gymnasium() -> None:
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import hogwild_rl"],
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in ended.stderr.splitlines()}
    assert "hogwild_rl" in loaded
    assert not loaded & {"torch", "gymnasium", "numpy", "tyro"}


def test_public_names_are_documented() -> None:
    for name in MODULES:
        module = importlib.import_module(name)
        assert module.__doc__, name
        for label, member in vars(module).items():
            ours = getattr(member, "__module__", None) == name
            if ours and not label.startswith("_") and callable(member):
                assert inspect.getdoc(member), f"{name}.{label}"


def test_rooms_are_small() -> None:
    for module in MODULES:
        path = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
        if path.exists():
            assert len(path.read_text().splitlines()) <= 400, module
            for node in ast.walk(source(module)):
                if isinstance(node, ast.FunctionDef):
                    body = node.end_lineno - node.body[0].lineno
                    assert body <= 60, f"{module}.{node.name} has {body} lines"


def test_done_is_no_word_of_ours() -> None:
    for module in MODULES:
        names = {node.id for node in ast.walk(source(module)) if isinstance(node, ast.Name)}
        assert not names & {"done", "dones"}, module


def test_public_names_of_the_package() -> None:
    for name in hogwild_rl.__all__:
        assert getattr(hogwild_rl, name) is not None
    assert set(hogwild_rl.__all__) <= set(dir(hogwild_rl))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        hogwild_rl.nothing  # noqa: B018
