"""Where benchmarks keep what they have done: nothing that other code or other input made is taken for a cell's own."""

import importlib
import sys
from pathlib import Path

import cells
import pytest


def test_a_cell_is_named_by_its_input_and_by_the_code_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, imported, other = (tmp_path / f"wattbit_{name}.py" for name in ("bench", "imported", "other"))
    for path in (source, imported, other):
        path.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, imported.stem, importlib.import_module(imported.stem))

    def name(given: object = (1, "a"), *parts: str) -> Path:
        return cells.cell(tmp_path, str(source), given, *(parts or ("policy", "hls")))

    first = name()
    assert first.parent == tmp_path / source.stem
    other.write_text("NEVER = 'imported'")
    assert name() == first
    others = [name((2, "a")), name((1, "a"), "policy")]
    imported.write_text("PRICE = 2")
    others.append(name())
    source.write_text("import wattbit_imported")
    others.append(name())
    monkeypatch.setattr(cells, "code_digest", lambda part: f"another {part}")
    others.append(name())
    assert len({first, *others}) == 6
