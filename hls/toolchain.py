"""What turns a design into something a board loads: one interface for every toolchain, and the choice among them.

| toolchain | for | gives |
|---|---|---|
| vivado | every board | a bitstream and its handoff; untested on hardware |
| open | Zynq-7000 | a bitstream from yosys, nextpnr and our assembler; not hardware-tested |
| virtual | every board | the Verilated design, deployed like a bitstream to 64-bit cores |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

from wattbit.errors import WattbitError
from wattbit.hls.shell import ShellRtl
from wattbit.plan import Target
from wattbit.progress import Progress

ToolchainName = Literal["vivado", "open", "virtual"]  # the best first


@dataclass(frozen=True)
class Bitstream:
    """What a toolchain made of a design.

    bit, hwh: bitstream and hardware handoff; None where the toolchain writes none. libraries: the Verilated design by
    architecture. clock_mhz: what the board's dividers deliver to the design. fmax_mhz: the highest clock by the tools'
    timing analysis, None where there was none. utilisation: `lut`, `ff`, `dsp` and `bram18` in use, as far as the tools
    say. tool_versions: by tool. seed: of placement, where one was taken. checks: what was checked and how it came out.
    hardware_tested is False: no board was at hand to try any of them.
    """

    toolchain: ToolchainName
    part: str
    bit: Path | None
    hwh: Path | None
    libraries: Mapping[str, Path]
    clock_mhz: float
    fmax_mhz: float | None
    utilisation: Mapping[str, int]
    tool_versions: Mapping[str, str]
    seed: int | None
    checks: Mapping[str, Any]
    hardware_tested: bool = False

    def to_json(self, out: Path) -> dict[str, Any]:
        """A record whose paths are relative to the folder `out`, in which all files lie."""

        def relative(path: Path | None) -> str | None:
            return None if path is None else path.relative_to(out).as_posix()

        record = {field.name: getattr(self, field.name) for field in fields(self)}
        record |= {name: dict(record[name]) for name in ("utilisation", "tool_versions", "checks")}
        libraries = {arch: relative(path) for arch, path in self.libraries.items()}
        return record | {"bit": relative(self.bit), "hwh": relative(self.hwh), "libraries": libraries}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], out: Path) -> Self:
        """The bitstream of a record that lies in the folder `out`."""
        paths = {name: None if record[name] is None else out / record[name] for name in ("bit", "hwh")}
        libraries = {arch: out / path for arch, path in record["libraries"].items()}
        return cls(**dict(record) | paths | {"libraries": libraries})


class Toolchain(Protocol):
    """A way from a design to a bitstream.

    chip_share: how much of a chip's LUTs, flip-flops and DSP slices its designs may be planned to take, for it to place
    and route them; block RAMs may all be used.
    """

    @property
    def name(self) -> ToolchainName: ...

    @property
    def chip_share(self) -> float: ...

    def available(self, target: Target) -> str | None:
        """None if it can build for the target on this machine, else why not and the remedy."""
        ...

    def build(self, shell: ShellRtl, target: Target, out: Path, progress: Progress) -> Bitstream:
        """Build the design for the target in the folder `out`, resuming there what was interrupted.

        Raises WattbitError when a tool is missing, fails or checks badly; the message has the last error of the tool's
        log and where the log lies.
        """
        ...


def choose(target: Target, wanted: str | None, toolchains: Sequence[Toolchain]) -> tuple[Toolchain, str]:
    """The wanted toolchain, or else the first usable one of `toolchains`, the best first; and why it was taken.

    Raises WattbitError for an unknown name, and when the wanted one, or every one, cannot build for the target here.
    """
    if target.part is None:
        raise WattbitError(
            f"target {target.name} has no programmable logic; leave out the toolchain, or choose a board with a part"
        )
    if wanted is None:
        passed: list[str] = []
        for toolchain in toolchains:
            reason = toolchain.available(target)
            if reason is None:
                return toolchain, f"{toolchain.name}: the best that is usable here" + "".join(f"; {p}" for p in passed)
            passed.append(f"not {toolchain.name}: {reason}")
        raise WattbitError(f"no toolchain can build for {target.name} here: {'; '.join(passed)}")
    for toolchain in toolchains:
        if toolchain.name == wanted:
            reason = toolchain.available(target)
            if reason is not None:
                raise WattbitError(f"toolchain {wanted} cannot build for {target.name}: {reason}")
            return toolchain, f"{wanted}: as asked for"
    raise WattbitError(f"toolchain must be one of {', '.join(get_args(ToolchainName))}, not {wanted!r}")
