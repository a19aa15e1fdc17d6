"""Which part a board says it has, by the files of its kernel."""

import mmap
from pathlib import Path

import pytest

from wattbit.board.agent import part

ZYNQ = b"digilent,zynq-pynqz1\0xlnx,zynq-7000\0"
ZYNQMP = b"xlnx,zynqmp-zcu104-revC\0xlnx,zynqmp\0"


def kernel(
    folder: Path, monkeypatch: pytest.MonkeyPatch, compatible: bytes, revision: str | None, idcode: int = 0
) -> None:
    """Files as a kernel shows them; `idcode` is what a Zynq-7000's register holds."""
    monkeypatch.delenv(part.VARIABLE, raising=False)
    monkeypatch.setattr(part, "COMPATIBLE", folder / "compatible")
    monkeypatch.setattr(part, "SOC_REVISION", folder / "revision")
    monkeypatch.setattr(part, "MEMORY", folder / "mem")
    (folder / "compatible").write_bytes(compatible)
    if revision is not None:
        (folder / "revision").write_text(revision)
    place = part.ZYNQ_IDCODE % mmap.PAGESIZE
    (folder / "mem").write_bytes(bytes(place) + idcode.to_bytes(4, "little") + bytes(mmap.PAGESIZE - place - 4))
    monkeypatch.setattr(part, "ZYNQ_IDCODE", place)


@pytest.mark.parametrize(
    ("compatible", "revision", "idcode", "found"),
    [
        pytest.param(
            ZYNQ, "0x3\n", 0x23727093, "xc7z020", id="a Zynq-7000 kernel has a revision file too, of PS_VERSION"
        ),
        pytest.param(ZYNQ, None, 0x13722093, "xc7z010", id="or none"),
        pytest.param(ZYNQ, "0x3\n", 0xFFFFFFFF, None, id="what is no IDCODE names no part"),
        pytest.param(ZYNQMP, "0x14730093\n", 0, "xczu7ev", id="ZCU104"),
        pytest.param(ZYNQMP, "0x04724093\n", 0, "xck26", id="KV260"),
        pytest.param(ZYNQMP, "0x14738093\n", 0, "IDCODE 0x14738093", id="a part that is not known here"),
        pytest.param(ZYNQMP, "0x3\n", 0, None, id="a silicon revision is no IDCODE"),
        pytest.param(ZYNQMP, "v3\n", 0, None, id="nor is a word"),
        pytest.param(ZYNQMP, None, 0, None, id="no file"),
        pytest.param(b"raspberrypi,4-model-b\0brcm,bcm2711\0", "0x04724093\n", 0, None, id="another maker's chip"),
    ],
)
def test_a_board_says_its_part_by_its_silicon(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    compatible: bytes,
    revision: str | None,
    idcode: int,
    found: str | None,
) -> None:
    kernel(tmp_path, monkeypatch, compatible, revision, idcode)
    assert part.board_part() == found


def test_a_board_on_which_nothing_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel(tmp_path, monkeypatch, ZYNQ, "0x3\n", 0x23727093)
    (tmp_path / "mem").unlink()  # as without root's rights
    assert part.board_part() is None
    (tmp_path / "compatible").unlink()
    assert part.board_part() is None
