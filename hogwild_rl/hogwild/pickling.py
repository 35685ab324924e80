"""Pickling for child processes, of user code too, and the main module that they import again."""

import ast
import functools
import inspect
import io
import operator
import pathlib
import pickle
import re
import sys
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import context, spawn
from multiprocessing.reduction import ForkingPickler
from typing import Any

STDIN = "<stdin>"  # __file__ of a program that is read from stdin
_GUARD = re.compile("__name__|_process|MainProcess")  # names in conditions that a child fails


def dumps(value: Any, reducers: Mapping[type, Callable[[Any], Any]] | None = None) -> bytes:
    """Pickles a value for `pickle.loads`, including lambdas, closures and notebooks' classes.

    Shared memory and file handles are pickled only while a process is being started.

    Args:
        value: any object.
        reducers: functions like `__reduce__` for some types, which go before their own.

    Raises:
        Exception: of any type, as user code may raise it.
    """
    import cloudpickle  # type: ignore[import-untyped]

    starting = context.get_spawning_popen() is not None
    shared = ForkingPickler._extra_reducers if starting else {}  # type: ignore[attr-defined]

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child(
            {**shared, **(reducers or {})}
        )

        def reducer_override(self, obj: Any) -> Any:
            return NotImplemented if _imported_again(obj) else super().reducer_override(obj)

    Pickler(buffer := io.BytesIO()).dump(value)
    return buffer.getvalue()


class Pickled:
    """Value that is pickled by `dumps`."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (dumps(self._value),)


def _imported_again(obj: Any) -> bool:
    """True for classes and functions that a child has after its import of the main module."""
    if not isinstance(obj, type | types.FunctionType) or obj.__module__ != "__main__":
        return False
    blocks, name = _guarded(), obj.__qualname__
    nodes = (node for block in blocks or () for node in ast.walk(block))
    only_here = {getattr(node, "name", None) for node in nodes}
    try:
        same = operator.attrgetter(name)(sys.modules["__main__"]) is obj
    except AttributeError:  # local
        return False
    return same and blocks is not None and name.split(".")[0] not in only_here


def _guarded() -> Sequence[ast.If] | None:
    """Blocks of the main module that children skip when they import it again.

    None if they do not import it, as in a notebook or after ``python -c``, or its code is unknown.
    """
    data = spawn.get_preparation_data("")
    name, path = data.get("init_main_from_name"), data.get("init_main_from_path", "")
    # The rules of spawn._fixup_main_from_name and spawn._fixup_main_from_path:
    if name.endswith("__main__") if name else pathlib.Path(path).stem in ("", "ipython", STDIN):
        return None
    try:
        return _guarded_in(inspect.getsource(sys.modules["__main__"]))
    except (OSError, SyntaxError):
        return None


@functools.lru_cache(maxsize=1)
def _guarded_in(source: str) -> Sequence[ast.If]:
    blocks = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.If)]
    return [node for node in blocks if _GUARD.search(ast.unparse(node.test))]


def repeated_call() -> str:
    """Place in the main module that every child would run again, as "file, line N"; "" if none.

    It is code at the top level of a program without ``if __name__ == "__main__":``.
    """
    main, blocks = sys.modules["__main__"], _guarded()
    if blocks is None:
        return ""
    for frame in sys._current_frames().values():
        for each, line in traceback.walk_stack(frame):
            skipped = any(block.lineno <= line <= (block.end_lineno or 0) for block in blocks)
            top = each.f_globals is vars(main) and each.f_code.co_name == "<module>"
            if top and each.f_code.co_filename == main.__file__ and not skipped:
                return f"{main.__file__}, line {line}"
    return ""
