"""The agent on the virtual board: the unmodified pynq over SSH, in emulated ARM user space."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.board_stub import CYCLES_PER_PACKET, DIGEST, TARGET, make_parts
from tests.board_support import cache_or_skip
from wattbit.board.bench import bench
from wattbit.board.bundle import Parts, pack
from wattbit.board.deploy import deploy
from wattbit.board.ssh import Connection
from wattbit.board.virtual import VirtualBoard, mount_namespace
from wattbit.errors import WattbitError

CROSS = "aarch64-linux-gnu-gcc"

# What an engineer types on a board, with no wattbit driver between them and pynq.
BY_HAND = """
import os, sys, wattbit.board.agent.simdevice
import numpy as np
from pynq import Clocks, Overlay, allocate
from wattbit.errors import WattbitError
overlay = Overlay(sys.argv[1] + "/accel.bit")
shell = overlay.wattbit_0
d = int(shell.register_map.D_MODEL)
sent, got = allocate((1, 8 + d), np.uint8), allocate((1, d), np.int8)
sent[:] = 0
sent[0, 0], sent[0, 1], sent[0, 8:] = 1, 2, np.arange(d)
sent.flush()
shell.register_map.COUNT = 1
shell.register_map.IN_ADDR = sent.device_address
shell.register_map.OUT_ADDR = got.device_address
shell.register_map.CTRL.START = 1
while not shell.register_map.CTRL.DONE:
    pass
stale = int(got[0, 3])
got.invalidate()
print(hex(shell.read(4)), Clocks.fclk0_mhz, stale, got[0, 3], shell.register_map.CYCLES_LO[:])
os.unlink(sys.argv[2])
try:
    Overlay(sys.argv[1] + "/accel.bit")
except WattbitError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("run"), CROSS)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with VirtualBoard(cache_or_skip()) as board, board.connection() as opened:
        yield opened


@pytest.fixture
def bundle(parts: Parts) -> Path:
    folder = parts.export.parent / "bundle"
    pack(parts, TARGET, folder)
    return folder


def test_bench_through_pynq_is_bit_exact(connection: Connection, bundle: Path, tmp_path: Path) -> None:
    result = bench(bundle, connection, tmp_path / "bench")
    assert result["bit_exact"] and result["packets"] == 60
    assert result["fpga"]["cycles"] == CYCLES_PER_PACKET * 60
    assert result["fpga"]["clock_mhz"] == TARGET.clock_mhz, "read back from the PS registers by pynq"
    assert result["agent"]["machine"] == "aarch64" and result["agent"]["pynq"] == "4.0.0"
    assert result["energy"]["provenance"] == "simulated"


def test_pynqs_own_objects_drive_the_shell(connection: Connection, bundle: Path) -> None:
    place = deploy(bundle, connection)
    library = f"{place}/accel-{DIGEST}.so"
    command = ["env", f"PYTHONPATH={place}/code", "python3", "-B", "-c", BY_HAND, place, library]
    lines = connection.run([*connection.launch, *command]).decode().splitlines()
    expected = str(3 * 3 + 16 * 1 + 2)
    assert lines[0].split() == ["0x57423031", "100.0", "0", expected, str(CYCLES_PER_PACKET)]
    assert lines[1] == f"accel.bit is design {DIGEST}, but accel-{DIGEST}.so is not beside it; deploy again"


def test_a_full_disk_is_one_error_and_leaves_nothing(bundle: Path) -> None:
    probe = subprocess.run([*mount_namespace(), "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"this machine gives no mount namespace: {probe.stderr.strip()}")
    with VirtualBoard(cache_or_skip(), disk_bytes=64 << 10) as small, small.connection() as connection:
        with pytest.raises(WattbitError, match=r"^the disk of 127\.0\.0\.1 is full: the bundle takes 0\.\d MB; free"):
            deploy(bundle, connection)
        assert connection.run(["ls", "wattbit", "wattbit/.objects"]).split() == [b"wattbit:", b"wattbit/.objects:"]


def test_a_bundle_for_another_part_is_refused(
    connection: Connection, parts: Parts, bundle: Path, tmp_path: Path
) -> None:
    pack(parts, replace(TARGET, part="xczu3eg-sbva484-1-i"), tmp_path / "other")
    with pytest.raises(WattbitError, match=r"is for xczu3eg-sbva484-1-i, this board has xc7z020clg400-1; build for"):
        deploy(tmp_path / "other", connection)
    deploy(bundle, connection)
