"""What the board tests share: a virtual board from the cache that set-up filled."""

import shutil
from pathlib import Path

import pytest

from wattbit.board import rootfs, virtual
from wattbit.run import cache_folder


def cache_or_skip() -> Path:
    """The cache folder; skips where the virtual board cannot run."""
    for program, package in virtual.TOOLS:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian package {package})")
    cache = cache_folder()
    if not rootfs.path(cache).is_dir():
        pytest.skip(f"the virtual board's root file system is not in {cache}; `make setup` builds it")
    return cache
