"""What DESIGN allows the folders to import, held on the syntax trees."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("models", "policy", "hls", "tvm_schedules", "board")
SHARED = {"plan", "arith", "clock", "files", "errors", "lines", "processes", "progress", "recipe", "shell"}
JOINERS = {"cli", "metering", "pipeline", "presets"}  # the command line: the only modules that see two folders


def wattbit_imports(path: Path) -> set[str]:
    """The first name after `wattbit.` of every import of a file, wherever it stands in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names = [f"wattbit.{alias.name}" for alias in node.names] if module == "wattbit" else [module]
        for name in names:
            head, _, rest = name.partition(".")
            assert head not in FOLDERS, f"{path}: import wattbit.{name}, not {name}"
            if head == "wattbit" and rest:
                found.add(rest.partition(".")[0])
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_imports_itself_and_shared_types_only(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        strange = wattbit_imports(path) - SHARED - {folder}
        assert not strange, f"{path.relative_to(ROOT)} imports wattbit.{sorted(strange)[0]}"


def test_only_the_command_line_joins_folders() -> None:
    for path in (ROOT / "wattbit").glob("*.py"):  # and commands/, which are of the command line
        if path.stem not in JOINERS:
            assert not wattbit_imports(path) & set(FOLDERS), f"{path.name} imports one of the five folders"


@pytest.mark.parametrize("module", sorted(SHARED))
def test_shared_modules_import_no_other_part(module: str) -> None:
    assert wattbit_imports(ROOT / "wattbit" / f"{module}.py") <= SHARED


@pytest.mark.parametrize("module", ["plan", "clock", "files", "errors", "lines", "progress", "recipe"])
def test_shared_types_need_the_standard_library_only(module: str) -> None:
    import sys

    tree = ast.parse((ROOT / "wattbit" / f"{module}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            heads = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            heads = {(node.module or "").partition(".")[0]}
        else:
            continue
        assert heads <= set(sys.stdlib_module_names) | {"wattbit"}


def test_what_a_board_carries_is_python_3_10() -> None:
    """PYNQ 3.0's image has Python 3.10; names that are younger are looked for too."""
    from wattbit.board.bundle import AGENT, DECODER, KERNELS
    from wattbit.board.carried import carried_files

    for path in carried_files([AGENT, KERNELS, DECODER]).values():
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for guarded in [node for node in tree.body if isinstance(node, ast.If)]:
            assert ast.unparse(guarded.test) == "TYPE_CHECKING" or not ast.unparse(guarded).count("import")
            tree.body.remove(guarded)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        young = {"tomllib", "file_digest", "StrEnum", "ExceptionGroup"}
        assert not names & young, f"{path.name} uses {names & young}"
        assert "Self" not in {
            alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }, f"{path.name} imports typing.Self where it runs"


def test_links_reach_the_five_folders() -> None:
    for folder in FOLDERS:
        assert (ROOT / "wattbit" / folder).is_symlink()
        assert (ROOT / "wattbit" / folder).resolve() == (ROOT / folder).resolve()
