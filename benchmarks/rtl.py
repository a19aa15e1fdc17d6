"""A plan's launches in RTL simulation, for benchmarks.

The cycles depend on widths, shapes and routing, not on the weights' values: the experts simulated are random ones of
the plan's widths.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import fpga_models
import numpy as np

from wattbit.files import digest_json, read_json, sha256_file, write_json
from wattbit.hls.accelerator import Accelerator, verilate
from wattbit.hls.compare import images_of
from wattbit.hls.engine import write_engine
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.launches import Launch
from wattbit.hls.shell import build_shell
from wattbit.run import code_digest


def cycles(planned: EnginePlan, packets: Sequence[Launch], folder: Path) -> list[int]:
    """Clock cycles of each launch. The folder keeps them, and not the design."""
    asked = [planned.digest, [[one.tolist() for one in each] for each in packets]]
    made_by = [sha256_file(Path(file)) for file in (__file__, fpga_models.__file__)]
    kept = folder / f"{digest_json([asked, made_by, code_digest('hls')])}.json"
    if not kept.is_file():
        out = kept.with_suffix(".design")
        ints = [fpga_models.integers(spec, planned.shape, i) for i, spec in enumerate(planned.classes)]
        engines = [
            write_engine(own, spec, out / "engines", planned.part)
            for own, spec in zip(ints, planned.classes, strict=True)
        ]
        design = build_shell(engines, planned.shape.d_model, planned.digest, out / "shell")
        with Accelerator(verilate(design, out / "acc", "x86_64"), images=images_of(engines)) as accelerator:
            taken = [
                accelerator.run(engine, index, np.zeros((len(engine), planned.shape.d_model), np.int8))[1]
                for engine, index in packets
            ]
        shutil.rmtree(out)
        write_json(kept, taken)
    found: list[int] = read_json(kept)
    return found
