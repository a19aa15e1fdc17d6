"""Where benchmarks keep what they have done: nothing that other code or other input made is taken for a cell's own."""

from pathlib import Path

import cells
import pytest


def test_a_cell_is_named_by_its_input_and_by_the_code_that_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "bench.py"
    source.write_text("1")

    def name(given: object = (1, "a"), *parts: str) -> Path:
        return cells.cell(tmp_path, str(source), given, *(parts or ("policy", "hls")))

    first = name()
    assert first.parent == tmp_path / "bench" and first == name()
    others = [name((2, "a")), name((1, "a"), "policy")]
    monkeypatch.setattr(cells, "code_digest", lambda part: f"another {part}")
    others.append(name())
    source.write_text("2")
    others.append(name())
    assert len({first, *others}) == 5
