"""Files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from wattbit.errors import WattbitError
from wattbit.files import atomic, digest_json, read_json, write_json
from wattbit.lines import read_lines


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_digest_ignores_order_and_sees_content() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})


def test_nan_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert not list(tmp_path.iterdir())


def test_missing_and_broken_json(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match="does not exist; run the stage"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(WattbitError, match="is not JSON"):
        read_json(tmp_path / "bad.json")


def test_a_line_that_was_cut_short_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for text, whole in ((b"", b""), (b"cut", b""), (b"a\nb\n", b"a\nb\n"), (b"a\n\xc3", b"a\n")):
        path.write_bytes(text)
        assert read_lines(path) == whole.splitlines() and path.read_bytes() == whole


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "secret.json", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "secret.json").stat().st_mode & 0o777 == 0o600
