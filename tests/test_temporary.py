"""What counts as left in a temporary folder: all but the empty folder that PyTorch makes there."""

from pathlib import Path

import pytest

from tests.temporary import left_in


@pytest.mark.parametrize("name", ["torchinductor_root", "tmp123"])
def test_only_pytorchs_empty_folder_is_not_left(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert left_in(tmp_path) == ([] if name == "torchinductor_root" else [name])
    (tmp_path / name / "kernel.py").touch()
    assert left_in(tmp_path) == [name]


def test_a_file_is_left_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "torchinductor_root").touch()
    assert left_in(tmp_path) == ["torchinductor_root"]
