"""The netlist in simulation against the RTL, faults that it must find, and a whole bitstream."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tests.hls_engine_support import PART, Z2, engine_class, random_ints
from wattbit.errors import WattbitError
from wattbit.hls.accelerator import verilate
from wattbit.hls.engine import write_engine
from wattbit.hls.engine_class import Products
from wattbit.hls.open import bitfile, netlist, tools
from wattbit.hls.open.gates import compare, netlist_shell, stimulus
from wattbit.hls.open.toolchain import OpenToolchain
from wattbit.hls.shell import ShellRtl, build_shell
from wattbit.plan import ExpertShape, Precision
from wattbit.run import cache_folder

pytestmark = pytest.mark.slow
SHAPE = ExpertShape(16, 32)
SETS = 10  # the weights then fill a block RAM


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> ShellRtl:
    """Engines of two widths, one with its weights on the chip and products in logic, one that streams them."""
    folder = tmp_path_factory.mktemp("open")
    engines = []
    homes: tuple[tuple[Precision, Literal["chip", "stream"]], ...] = (
        (Precision(2, 8), "chip"),
        (Precision(4, 8), "stream"),
    )
    for precision, home in homes:
        products: Products = "logic" if home == "chip" else "dsp"
        spec = replace(engine_class(precision, SETS, 2, 2), home=home, products=products)
        ints = [random_ints(expert, precision, SHAPE) for expert in spec.experts]
        engines.append(write_engine(ints, spec, folder / "engines", PART))
    return build_shell(engines, SHAPE.d_model, "0123456789abcdef", folder / "shell")


@pytest.fixture(scope="module")
def gates(shell: ShellRtl) -> Path:
    folder = shell.folder.parent
    return netlist.synthesise(shell, folder / "netlist", folder / "yosys.log") / netlist.GATES


def simulate(shell: ShellRtl, gates: Path, name: str, text: str | None = None) -> dict[str, int]:
    """The netlist, or `text` instead of it, against the RTL."""
    folder = shell.folder.parent
    if text is not None:
        gates = folder / f"{name}.v"
        gates.write_text(text)
    rtl = verilate(shell, folder / "accelerator", "x86_64")
    library = verilate(netlist_shell(shell, gates, folder / f"{name}-shell"), folder / name, "x86_64")
    return compare(shell, rtl, library)


def test_the_netlist_computes_what_the_rtl_computes(shell: ShellRtl, gates: Path) -> None:
    assert "RAMB" in gates.read_text() and "DSP48E1" in gates.read_text()
    assert simulate(shell, gates, "gates")["vectors"] == len(stimulus(shell)[0])


def test_one_flipped_bit_of_a_weight_is_found(shell: ShellRtl, gates: Path) -> None:
    text = gates.read_text()
    # the second weights that are not zero: the first are of a hidden neuron that no vector of the stimulus wakes
    found = re.search(r"(RAMB\w+ #\(.*?\.INIT_00\(256'h0*[1-9a-f]0*)([1-9a-f])(\w*\))", text, re.S)
    assert found is not None
    flipped = f"{int(found[2], 16) ^ 1:x}"
    fault = text[: found.start(2)] + flipped + text[found.end(2) :]
    assert sum(a != b for a, b in zip(text, fault, strict=True)) == 1
    with pytest.raises(WattbitError, match=r"gate-level simulation: \d+ of \d+ vectors differ from the RTL"):
        simulate(shell, gates, "fault", fault)


def test_a_dsp_slice_that_multiplies_otherwise_is_found(shell: ShellRtl, gates: Path) -> None:
    text = gates.read_text()
    fault, count = re.subn(r"(DSP48E1 #\(.*?\.ALUMODE\()[^)]*\)", r"\g<1>4'h3)", text, count=1, flags=re.S)
    assert count == 1 and fault != text
    with pytest.raises(WattbitError, match="vectors differ from the RTL"):
        simulate(shell, gates, "dsp", fault)


def test_a_whole_bitstream(shell: ShellRtl) -> None:
    toolchain = OpenToolchain(cache_folder())
    if reason := toolchain.available(Z2):
        pytest.skip(reason)
    out = shell.folder.parent / "bitstream"
    steps: list[str] = []
    built = toolchain.build(shell, Z2, out, lambda what, done, total: steps.append(what))
    assert built.bit is not None and built.hwh is None and not built.hardware_tested
    assert built.checks["payload_bytes"] == 4045564 and built.checks["idcode"] == "0x03727093"
    assert built.checks["frames"] == 9996 and built.checks["unknown_features"] == 0
    assert built.checks["gate_level"]["vectors"] > 0 and built.checks["block_ram_contents"] > 0
    assert built.fmax_mhz is not None and 0 < built.clock_mhz <= min(50, built.fmax_mhz)
    assert set(built.tool_versions) >= {*tools.PACKAGES, "yosys", "verilator"}
    assert bitfile.decode(built.bit.read_bytes()).fields["b"] == "7z020clg400-1"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.is_file()}
    data = built.bit.read_bytes()
    built.bit.unlink()
    again = toolchain.build(shell, Z2, out)
    assert again == built and built.bit.read_bytes() == data
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/*") if path.is_file()}  # nothing was redone
