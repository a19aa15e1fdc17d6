"""Which programmable logic the board has: read from the silicon, so that no bundle is loaded onto another part."""

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from wattbit.errors import WattbitError

VARIABLE = "WATTBIT_PART"  # set on virtual boards, which have no silicon
SOC_REVISION = Path("/sys/devices/soc0/revision")  # an IDCODE on Zynq UltraScale+, a small number on Zynq-7000
COMPATIBLE = Path("/proc/device-tree/compatible")
MEMORY = Path("/dev/mem")
ZYNQ_IDCODE = 0xF8000530  # Zynq-7000: PSS_IDCODE of its SLCR (UG585)
REVISION_BITS = 0xF0000000
MAKER_BITS, XILINX = 0xFFF, 0x093  # end of every IDCODE of theirs
IDCODES = {  # of the processor's TAP, without the silicon's revision
    0x03722093: "xc7z010",
    0x03727093: "xc7z020",
    0x04710093: "xczu3eg",
    0x04730093: "xczu7ev",
    0x04724093: "xck26",
}


def board_part() -> str | None:
    """Start of the name of the board's part, None where there is no way to tell."""
    if named := os.environ.get(VARIABLE):
        return named
    try:
        family = COMPATIBLE.read_bytes().split(b"\0")
        if b"xlnx,zynq-7000" in family:
            idcode = _zynq_idcode()
        elif b"xlnx,zynqmp" in family:
            idcode = int(SOC_REVISION.read_text(), 0)
        else:
            return None
    except (OSError, ValueError):
        return None
    if idcode & MAKER_BITS != XILINX:
        return None
    return IDCODES.get(idcode & ~REVISION_BITS, f"IDCODE {idcode:#010x}")


def _zynq_idcode() -> int:
    page = ZYNQ_IDCODE - ZYNQ_IDCODE % mmap.PAGESIZE
    with (
        MEMORY.open("rb") as memory,
        mmap.mmap(memory.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ, offset=page) as window,
    ):
        return int.from_bytes(window[ZYNQ_IDCODE - page : ZYNQ_IDCODE - page + 4], "little")


def check_part(manifest: Mapping[str, object], found: str | None) -> None:
    """WattbitError unless the bundle's design is for this board's part, or simulates it on a board without one."""
    target = manifest["target"]
    assert isinstance(target, Mapping)
    wanted = target["part"]
    if wanted is None or (found is None and manifest["toolchain"] == "virtual"):
        return
    if found is None:
        raise WattbitError(
            f"the bundle is for {wanted}, but this board does not say which part it has; start the agent as root"
        )
    if not str(wanted).startswith(found):
        raise WattbitError(f"the bundle is for {wanted}, this board has {found}; build for this board")
