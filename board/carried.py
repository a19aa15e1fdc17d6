"""Which wattbit modules a board needs: those that the agent imports, found by following its import statements."""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import wattbit
from wattbit.errors import WattbitError

PACKAGE = Path(wattbit.__file__).parent


def module_path(name: str) -> Path | None:
    """The file of a wattbit module, or None when the name is no module (but something in one)."""
    base = PACKAGE.parent.joinpath(*name.split("."))
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file():
            return path
    return None


def carried_files(modules: Iterable[str]) -> dict[str, Path]:
    """Files of `modules`, of all wattbit modules that they import and of their packages, by path for PYTHONPATH."""
    found: dict[str, Path] = {}
    waiting = [part for name in modules for part in _with_packages(name)]
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None or name in found:
            continue
        found[name] = path
        waiting += [part for imported in _imports(path) for part in _with_packages(imported)]
    missing = [name for name in modules if name not in found]
    if missing:
        raise WattbitError(f"there is no module {missing[0]} to carry to the board; install wattbit again")
    return {path.relative_to(PACKAGE.parent).as_posix(): path for path in sorted(found.values())}


def _with_packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: length + 1]) for length in range(len(parts))]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "wattbit")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wattbit":
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
