"""Where the coefficients of `hls.resources` come from: layers that yosys synthesised, and the fit to them.

    python -m wattbit.hls.calibration

synthesises every layer of `calibration.json` again (5 to 60 s each), writes the file anew and prints the coefficients.
Constants in memories are random, as trained weights look to yosys; where block RAM holds them they do not matter.
"""

import json
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.optimize import nnls

from wattbit.arith import OUT_BITS
from wattbit.files import read_json, write_text
from wattbit.hls.block_ram import constant
from wattbit.hls.engine import OWN_SOURCES, RTL, layer_widths
from wattbit.hls.resources import FF_FIT, LUT_FIT, Layer, Resources
from wattbit.hls.rtllib import patched
from wattbit.hls.synthesis import FAMILY, count, primitives, run_yosys

DATA = Path(__file__).with_name("calibration.json")
SHIFT_MIN = 11


def load() -> list[tuple[Layer, Resources]]:
    """The layers with what yosys counted for them."""
    return [(Layer(**one["layer"]), Resources.from_json(one["yosys"])) for one in read_json(DATA)]


def fit(points: Sequence[tuple[Layer, Resources]], names: Sequence[str], resource: str) -> dict[str, float]:
    """Coefficients of features, none below 0, that minimise the squared relative error of "lut" or "ff"."""
    features = np.array([[layer.features()[name] for name in names] for layer, _ in points], dtype=float)
    counted = np.array([getattr(resources, resource) for _, resources in points], dtype=float)
    found, _ = nnls(features / counted[:, None], np.ones(len(points)))
    return dict(zip(names, found.tolist(), strict=True))


def synthesise(layer: Layer, work: Path) -> Resources:
    """One layer by itself, in an empty folder."""
    out_bits, out_signed = (layer.act_bits, 0) if layer.signed else (OUT_BITS, 1)
    widths = layer_widths(layer.accumulator_bits, [SHIFT_MIN, SHIFT_MIN + layer.span], out_bits, layer.version)
    parameters: dict[str, int | str] = {
        **{"VERSION": layer.version, "STREAMED": int(not layer.sets), "SETS": max(layer.sets, 1)},
        **{"MW": layer.inputs, "MH": layer.outputs, "SIMD": layer.simd, "PE": layer.pe},
        **{"LANES": layer.lanes, "LOGIC": int(layer.products == "logic")},
        **{"WEIGHT_BITS": layer.weight_bits, "IN_BITS": layer.act_bits, "IN_SIGNED": int(layer.signed)},
        **{"ACC_BITS": widths.acc_bits, "OUT_BITS": out_bits, "OUT_SIGNED": out_signed},
        **{"SHIFT_MIN": widths.shift_min, "SHIFT_MAX": widths.shift_max, "MULTIPLIER_BITS": layer.multiplier_bits},
    }
    for name, part in zip(("REQUANT_FILE", "WEIGHT_FILE"), layer.memories, strict=True):
        if layer.sets:
            file = f"{name.lower()}.hex"
            (work / file).write_text(_words(layer.sets * part.depth, part.width), "ascii")
            parameters[name] = f'"{file}"'
    sources = [*patched(work / "rtllib"), *(RTL / name for name in OWN_SOURCES if name != "engine_core.sv")]
    for source in sources:
        (work / source.name).write_text(source.read_text("utf-8"), "utf-8")
    (work / "primitives.sv").write_text(primitives(), "utf-8")
    (work / "layer.sv").write_text(_module(layer, out_bits, parameters), "utf-8")
    files = " ".join(["primitives.sv", *(source.name for source in sources), "layer.sv"])
    run_yosys(
        "read_slang --threads 1 --single-unit --allow-use-before-declare --ignore-assertions --top layer "
        f"{files}\nsynth_xilinx -family {FAMILY[layer.version]} -top layer -flatten -noiopad -noclkbuf\n"
        "tee -q -o cells.json stat -json\n",
        work,
    )
    report: dict[str, Any] = read_json(work / "cells.json")
    return count(report["design"]["num_cells_by_type"], "yosys")


def _words(depth: int, width: int) -> str:
    digits = -(-width // 4)
    if constant(depth, width).bram18:
        return "".join(("f" if i % 2 else "0") * digits + "\n" for i in range(depth))
    draw = random.Random(depth * width)
    return "".join(f"{draw.getrandbits(width):0{digits}x}\n" for _ in range(depth))


def _module(layer: Layer, out_bits: int, parameters: Mapping[str, int | str]) -> str:
    values = ", ".join(f".{name}({value})" for name, value in parameters.items())
    return f"""module layer (
	input logic clk, rst_n,
	input logic [15:0] s_set, input logic s_set_valid, output logic s_set_ready,
	input logic [63:0] w_tdata, input logic w_tvalid, output logic w_tready, w_done,
	input logic [{layer.simd * layer.act_bits - 1}:0] s_tdata, input logic s_tvalid, output logic s_tready,
	output logic [{layer.pe * out_bits - 1}:0] m_tdata, output logic m_tvalid, input logic m_tready
);
	engine_layer #({values}) core (.*);
endmodule
"""


@click.command(help=__doc__)
def main() -> None:
    points = []
    known = load()
    for layer, _ in known:
        with tempfile.TemporaryDirectory() as name:
            points.append((layer, replace(synthesise(layer, Path(name)), tool="yosys")))
        click.echo(f"{len(points)}/{len(known)} {layer}: {points[-1][1]}")
    lines = [json.dumps({"layer": asdict(layer), "yosys": resources.to_json()}) for layer, resources in points]
    write_text(DATA, "[\n" + ",\n".join(lines) + "\n]\n")
    for resource, names in (("lut", tuple(LUT_FIT)), ("ff", tuple(FF_FIT))):
        found = {name: round(value, 3) for name, value in fit(points, names, resource).items()}
        click.echo(f"{resource} {found}")


if __name__ == "__main__":
    main()
