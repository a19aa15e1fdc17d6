"""A program `vivado` for the tests: it runs scripts by `vivado_stub.tcl`, with reports of the given figures."""

import os
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from wattbit.board.overlay import FREQUENCY, handoff

STUB = Path(__file__).parent / "vivado_stub.tcl"

# The tables that the toolchain reads, as `report_timing_summary` and `report_utilization` print them (UG906, UG904).
TIMING = """
------------------------------------------------------------------------------------------------
| Design Timing Summary
| ---------------------
------------------------------------------------------------------------------------------------

    WNS(ns)      TNS(ns)  TNS Failing Endpoints  TNS Total Endpoints      WHS(ns)      THS(ns)  THS Failing Endpoints
    -------      -------  ---------------------  -------------------      -------      -------  ---------------------
{setup:11.3f}        0.000                      0                  723 {hold:12.3f}        0.000                      0


All user specified timing constraints are met.
"""
UTILISATION = """
1. Slice Logic
--------------

+----------------------------+-------+-------+------------+-----------+-------+
|          Site Type         |  Used | Fixed | Prohibited | Available | Util% |
+----------------------------+-------+-------+------------+-----------+-------+
| {slice} LUTs                 | 12345 |     0 |          0 |     53200 | 23.20 |
|   LUT as Logic             | 12000 |     0 |          0 |     53200 | 22.56 |
| {slice} Registers            | 23456 |     0 |          0 |    106400 | 22.05 |
+----------------------------+-------+-------+------------+-----------+-------+

3. Memory
---------

+-------------------+------+-------+------------+-----------+-------+
|     Site Type     | Used | Fixed | Prohibited | Available | Util% |
+-------------------+------+-------+------------+-----------+-------+
| Block RAM Tile    | 14.5 |     0 |          0 |       140 | 10.36 |
|   RAMB36/FIFO*    |   10 |     0 |          0 |       140 |  7.14 |
|   RAMB18          |    9 |     0 |          0 |       280 |  3.21 |
+-------------------+------+-------+------------+-----------+-------+

| DSPs              |   64 |     0 |          0 |       220 | 29.09 |
"""


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program `vivado` on PATH that takes Vivado's options and runs scripts by the stand-in."""
    tclsh = shutil.which("tclsh")
    if tclsh is None:
        pytest.skip("tclsh is not installed (Debian package tcl)")
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "vivado"
    program.write_text(f"""#!/bin/sh
case "$1" in -version) echo "vivado v${{STUB_VERSION:-2023.2}} (64-bit)"; exit 0;; esac
while [ $# -gt 0 ]; do
  case "$1" in
    -mode|-log|-source) eval "${{1#-}}=\\$2"; shift 2;;
    -nojournal|-notrace) shift;;
    *) echo "ERROR: [Common 17-170] Unknown option '$1'"; exit 1;;
  esac
done
[ "$mode" = batch ] || exit 1
exec "{tclsh}" "{STUB}" "$source" >"$log" 2>&1
""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    reports(tmp_path, monkeypatch, setup=2.0, hold=0.02)
    return program


def vivados_handoff() -> str:
    """A handoff of a Zynq-7000 at 100 MHz as Vivado's: without the name under which pynq looks for its clock."""
    lines = handoff("xc7z020clg400-1", 100.0).splitlines(keepends=True)
    return "".join(line for line in lines if FREQUENCY not in line)


def reports(folder: Path, monkeypatch: pytest.MonkeyPatch, setup: float, hold: float, site: str = "Slice") -> None:
    (folder / "timing").write_text(TIMING.format(setup=setup, hold=hold))
    (folder / "utilisation").write_text(UTILISATION.format(slice=site))
    monkeypatch.setenv("STUB_TIMING", str(folder / "timing"))
    monkeypatch.setenv("STUB_UTILISATION", str(folder / "utilisation"))


def clock_of(hwh: str) -> float:
    values = {p.get("NAME"): str(p.get("VALUE")) for p in ElementTree.fromstring(hwh).iter("PARAMETER")}
    stages = [int(values[f"PCW_FCLK0_PERIPHERAL_DIVISOR{stage}"]) for stage in range(2)]
    assert float(values[FREQUENCY]) == pytest.approx(1000 / (stages[0] * stages[1]))
    return 1000 / (stages[0] * stages[1])
