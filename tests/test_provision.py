"""Set-up: what it refuses, and that it says what to type."""

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from wattbit import provision

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without an environment, in which no command may run."""
    monkeypatch.setattr(provision, "ROOT", tmp_path)
    monkeypatch.setattr(provision, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(provision, "STAMP", tmp_path / ".venv" / "wattbit-setup")
    monkeypatch.setattr(provision, "run", lambda command: pytest.fail(f"ran {command}"))
    return tmp_path


def test_a_full_disk_is_refused_before_anything_is_written(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - 2 * 10**9, 2 * 10**9))
    with pytest.raises(SystemExit, match=rf"2\.0 GB are free in .* fills {provision.ROOM_GB}; make room"):
        provision.install_python([], "state")
    assert list(bare.iterdir()) == []


@pytest.mark.parametrize("name", ["WATTBIT_CACHE", "XDG_CACHE_HOME", "HOME"])
@pytest.mark.parametrize(
    ("disks", "free_gb", "refused"),
    [
        ((1, 2), (5, 1), None),
        ((1, 2), (5, 0.5), r"0\.5 GB are free in .*small, and set-up fills 1; make room"),
        ((1, 1), (6, 6), None),
        ((1, 1), (5.5, 5.5), r"5\.5 GB are free in .*small, and set-up fills 6; make room"),
    ],
)
def test_the_caches_disk_counts_too(
    bare: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    disks: tuple[int, int],
    free_gb: tuple[float, float],
    refused: str | None,
) -> None:
    """Even where its folder is not there yet: a disk of its own needs its part, that of the checkout both."""
    cache = bare / "small"
    cache.mkdir()
    for other in ("WATTBIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(cache / "new"))
    free = dict(zip((bare, cache), free_gb, strict=True))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, free[path] * 10**9))
    monkeypatch.setattr(provision, "disk_of", dict(zip((bare, cache), disks, strict=True)).__getitem__)
    if refused is None:
        provision.check_room()
    else:
        with pytest.raises(SystemExit, match=refused):
            provision.check_room()


def test_an_environment_of_these_pins_is_left_alone(bare: Path) -> None:
    provision.STAMP.parent.mkdir()
    provision.STAMP.write_text("state")
    provision.install_python(["a"], "state")


def test_a_user_who_is_not_root_is_told_what_to_type(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provision, "missing_debian", lambda packages: ["proot"])
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"sudo apt-get .* install .* proot"):
        provision.install_debian(["make", "proot"])


def test_an_older_python_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    monkeypatch.setattr(sys, "version", "3.10.0 (main)")
    with pytest.raises(SystemExit, match=r"3\.11 or newer is needed, not 3\.10\.0"):
        provision.install_python([], "state")
