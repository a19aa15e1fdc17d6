"""The models behind the planner, held to RTL simulation (clock cycles) and to yosys (resources), on unseen engines.

    python benchmarks/fpga_models.py [--quick] [--json FILE]

Engines are drawn at random over widths, shapes, PE, SIMD, weight homes, numbers of experts and kinds of products; none
of them was used to find the models' constants. A point of the cycle table is one engine, its error that of its worst
launch of 1, 5 and 24 vectors; the mixtures are launches over all engines of a design. Shells are counted around
engines that are black boxes. Finished points are kept in runs/fpga-models.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import click
import numpy as np
from rows import Benchmark, about

from wattbit.arith import ExpertInts, forward
from wattbit.files import digest_json, read_json, write_json, write_text
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.compare import images_of
from wattbit.hls.cycles import Timing, launch
from wattbit.hls.engine import EngineRtl, write_engine
from wattbit.hls.engine_class import HIDDEN_PARALLELISM, PARALLELISM, EngineClass
from wattbit.hls.resources import Scales, model, shell
from wattbit.hls.shell import build_shell
from wattbit.hls.synthesis import FAMILY, count, run_yosys, synthesise
from wattbit.plan import ExpertId, ExpertShape, Precision
from wattbit.shell import interleaved

FOLDER = Path("runs/fpga-models")
PARTS = {1: "xc7z020clg400-1", 2: "xck26-sfvc784-2LV-c"}
SHAPES = (ExpertShape(64, 96), ExpertShape(32, 128), ExpertShape(128, 64))
ENGINES = 11  # of each design
LAUNCHES = (1, 5, 24)
MIXTURES = (12, 60, 150)
SYNTHESISED = 8
SMALL = 32  # products a cycle of a layer, so that a synthesis takes a minute
SHELLS = (1, 2, 4, 6, 9, 12)  # engines


@dataclass(frozen=True)
class Point:
    """An engine: its precision, parallelism, home, number of experts, and what multiplies."""

    precision: str
    pe1: int
    simd1: int
    pe2: int
    home: str
    experts: int
    products: str

    def spec(self, copy: int) -> EngineClass:
        ids = tuple(ExpertId(copy, i) for i in range(self.experts))
        precision = Precision.parse(self.precision)
        parallelism = (self.pe1, self.simd1, self.pe2, self.pe1)
        return EngineClass(precision, *parallelism, ids, copy, self.home, self.products)  # type: ignore[arg-type]


def points(number: int, seed: int, widest: int = 64) -> list[Point]:
    draw = random.Random(seed)
    found: list[Point] = []
    while len(found) < number:
        pe1, simd1, pe2 = (draw.choice(some) for some in (HIDDEN_PARALLELISM, PARALLELISM, PARALLELISM))
        if max(pe1 * simd1, pe1 * pe2) > widest or pe1 * min(simd1, pe2) < 2:
            continue
        width, act = draw.choice(((2, 8), (3, 8), (4, 8), (5, 8), (6, 8), (7, 8), (8, 8), (2, 4), (4, 4)))
        home = "stream" if len(found) % 2 else "chip"
        products = draw.choice(("dsp", "logic"))
        found.append(Point(f"w{width}a{act}", pe1, simd1, pe2, home, draw.randint(2, 9), products))
    return found


def integers(spec: EngineClass, shape: ExpertShape, seed: int) -> list[ExpertInts]:
    """Experts with weights and multipliers like trained ones."""
    rng = np.random.default_rng(seed)
    top = 2 ** (spec.precision.weight_bits - 1) - 1
    most = 2 ** Scales.expected(spec.precision, shape).multiplier_bits
    d, h = shape.d_model, shape.d_hidden
    found = []
    for expert in spec.experts:
        w1, w2 = (
            np.clip(np.rint(rng.normal(0, top / 2.5, size)), -top, top).astype(np.int8) for size in ((h, d), (d, h))
        )
        m1, m2 = (rng.integers(most // 4 + 1, most, size).astype(np.int32) for size in (h, d))
        shift1, shift2 = rng.integers(11, 14, 2).tolist()
        found.append(ExpertInts(expert, spec.precision, w1, w2, m1, m2, shift1, shift2, -4, -4, -4))
    return found


def cycle_rows(number: int, shape: ExpertShape, folder: Path) -> list[dict[str, Any]]:
    """Simulated and modelled cycles of one design's engines."""
    chosen = points(ENGINES, number)
    kept = folder / f"cycles-{digest_json([asdict(p) for p in chosen] + [asdict(shape)])}.json"
    if kept.is_file():
        found: list[dict[str, Any]] = read_json(kept)
        return found
    specs = [point.spec(copy) for copy, point in enumerate(chosen)]
    ints = [integers(spec, shape, copy) for copy, spec in enumerate(specs)]
    engines = [write_engine(own, spec, folder / "engines", PARTS[1]) for own, spec in zip(ints, specs, strict=True)]
    shell = build_shell(engines, shape.d_model, digest_json(number), folder / "shell")
    library = verilate(shell, folder / "accelerator", "x86_64")
    timings = [Timing.of(s, shape, Scales.of(own).lane_bits) for s, own in zip(specs, ints, strict=True)]
    costs = np.array([(timing.per_vector, timing.load) for timing in timings])
    rng = np.random.default_rng(number)

    def both(engine: np.ndarray[Any, Any]) -> tuple[int, float]:
        index = np.array([rng.integers(0, chosen[e].experts) for e in engine])
        x = rng.integers(-8, 8, (len(engine), shape.d_model)).astype(np.int8)
        with Accelerator(library, images=images_of(engines)) as accelerator:
            got, cycles = accelerator.run(engine, index, x)
        for e, i, vector, result in zip(engine, index, x, got, strict=True):
            if not np.array_equal(forward(ints[e][i], vector[None])[0], result):
                raise click.ClickException(f"{chosen[e]} returns other integers than its arithmetic; this is a bug")
        order = interleaved(engine, index, costs)
        return cycles, launch(timings, engine[order].tolist(), index[order].tolist(), shape.d_model // 8)

    rows = []
    for e, point in enumerate(chosen):
        runs = [both(np.full(count, e)) for count in LAUNCHES]
        rows.append(asdict(point) | _errors(runs) | {"d_model": shape.d_model, "d_hidden": shape.d_hidden})
    mixed = [both(rng.integers(0, len(chosen), count)) for count in MIXTURES]
    rows.append({"precision": "mixture"} | _errors(mixed) | {"d_model": shape.d_model, "d_hidden": shape.d_hidden})
    write_json(kept, rows)
    return rows


def _errors(runs: Sequence[tuple[int, float]]) -> dict[str, Any]:
    errors = [modelled / simulated - 1 for simulated, modelled in runs]
    return {"simulated": [a for a, _ in runs], "modelled": [round(b) for _, b in runs], "error": max(errors, key=abs)}


def resource_row(number: int, point: Point, folder: Path) -> dict[str, Any]:
    """What yosys counts for one engine and what is modelled, with the widths of its experts' requant words."""
    shape, version = SHAPES[number % len(SHAPES)], 1 + (number % 4 == 3)
    spec = point.spec(0)
    ints = integers(spec, shape, number)
    engine = write_engine(ints, spec, folder / f"yosys-{number}", PARTS[version])
    counted = synthesise(engine, folder / "yosys").counts
    modelled = model(spec, shape, version, Scales.of(ints)).counts
    errors = {name: modelled[i] / counted[i] - 1 for i, name in enumerate(("lut", "ff"))}
    return (
        asdict(point)
        | {
            "part": PARTS[version],
            "d_model": shape.d_model,
            "d_hidden": shape.d_hidden,
            "yosys": counted,
            "modelled": modelled,
            "exact": counted[2:] == modelled[2:],
        }
        | {f"{name}_error": error for name, error in errors.items()}
    )


def shell_row(number: int, engines: int, folder: Path) -> dict[str, Any]:
    """What yosys counts for the shell around engines, every other one streamed, and what is modelled."""
    shape, version = SHAPES[number % len(SHAPES)], 1 + number % 2
    specs = [point.spec(copy) for copy, point in enumerate(points(engines, 200 + number))]
    boxes = [black_box(spec, shape, PARTS[version], folder / f"shell-{number}") for spec in specs]
    design = build_shell(boxes, shape.d_model, "0", folder / f"shell-{number}" / "shell")
    kept = folder / f"shell-{design.digest}-{version}.json"
    if not kept.is_file():
        run_yosys(
            f"read_slang --threads 1 --single-unit --top {design.top} {' '.join(design.sources)}\n"
            f"synth_xilinx -family {FAMILY[version]} -top {design.top} -flatten -noiopad -noclkbuf\n"
            "tee -q -o cells.json stat -json\n",
            design.folder,
        )
        found = json.loads((design.folder / "cells.json").read_text("utf-8"))
        write_json(kept, found["design"]["num_cells_by_type"])
    counted, modelled = count(read_json(kept), "yosys").counts, shell(specs, shape, version).counts
    return {
        "engines": engines,
        "streams": design.streams,
        "part": PARTS[version],
        "d_model": shape.d_model,
        "yosys": counted,
        "modelled": modelled,
        "exact": counted[2:] == modelled[2:],
    } | {f"{name}_error": modelled[i] / counted[i] - 1 for i, name in enumerate(("lut", "ff"))}


def black_box(spec: EngineClass, shape: ExpertShape, part: str, folder: Path) -> EngineRtl:
    """An engine of which a synthesiser sees the ports alone."""
    engine = write_engine(integers(spec, shape, 0), spec, folder / "engines", part)
    box = folder / f"{engine.module}.sv"
    ports = engine.sources[-1].read_text("utf-8").partition(");")[0]
    write_text(box, f"{ports.replace('module', '(* blackbox *) module', 1)});\nendmodule\n")
    return replace(engine, sources=(box,), memories=())


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One design, one synthesis of an engine and one of a shell.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the tables to this file.")
def main(quick: bool, path: Path | None) -> None:
    designs = SHAPES[:1] if quick else SHAPES
    cycles = [row for i, shape in enumerate(designs) for row in cycle_rows(i, shape, FOLDER / f"design{i}")]
    for row in cycles:
        name = " ".join(
            str(row.get(key, "")) for key in ("precision", "pe1", "simd1", "pe2", "home", "experts", "products")
        )
        click.echo(
            f"{100 * row['error']:+6.2f} %  {row['d_model']}-{row['d_hidden']} {name}: {row['simulated']} simulated"
        )
    single = [abs(row["error"]) for row in cycles if row["precision"] != "mixture"]
    click.echo(f"cycles: {len(single)} engines, mean {100 * fmean(single):.2f} %, worst {100 * max(single):.2f} %")
    resources = []
    for number, point in enumerate(points(SYNTHESISED, 100, SMALL)[: 1 if quick else None]):
        resources.append(resource_row(number, point, FOLDER))
        row = resources[-1]
        click.echo(
            f"LUT {100 * row['lut_error']:+5.1f} %, FF {100 * row['ff_error']:+5.1f} %, DSP and BRAM "
            f"{'exact' if row['exact'] else 'differ'}: {point}, yosys {row['yosys']}, modelled {row['modelled']}"
        )
    for name in ("lut", "ff"):
        click.echo(f"{name}: mean {100 * fmean(abs(row[f'{name}_error']) for row in resources):.1f} %")
    shells = [shell_row(number, engines, FOLDER) for number, engines in enumerate(SHELLS[: 1 if quick else None])]
    for row in shells:
        click.echo(
            f"LUT {100 * row['lut_error']:+5.1f} %, FF {100 * row['ff_error']:+5.1f} %, DSP and BRAM "
            f"{'exact' if row['exact'] else 'differ'}: shell of {row['engines']} engines, {row['streams']} streamed, "
            f"yosys {row['yosys']}, modelled {row['modelled']}"
        )
    if path:
        write_json(path, {"cycles": cycles, "resources": resources, "shells": shells})
        about(path)


if __name__ == "__main__":
    main()
