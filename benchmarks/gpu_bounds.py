"""What bounds a launch of narrow weights: the expert kernel against itself with a part of its work left out.

    python benchmarks/gpu_bounds.py --json FILE

A variant's results are wrong; only its time counts. Mixtral's shape, one token, microseconds of up and down.
"""

import shutil
import tempfile
from pathlib import Path

import click
import torch
from gpu_experts import SHAPES, launches
from gpu_timing import times
from rows import Benchmark, about

from wattbit.errors import WattbitError
from wattbit.files import write_json
from wattbit.tvm_schedules.gpu import kernels
from wattbit.tvm_schedules.gpu.device import find_card

CHANGES = {  # variant: (what gemv.cu says, what it says instead)
    "as it is": (),
    "copies only": (
        (
            "const int end = last - block < SPAN ? last - block : SPAN;",
            "const int end = (last - block < SPAN ? last - block : SPAN) - 1000;",
        ),
    ),
    "no copies": (
        ("expect(full + stage, size + (GROUP ? 128 : 0));", "expect(full + stage, 0);"),
        ("copy_bulk(to, tile_words + (long long)fetch_block * BYTES, size, full + stage);", ""),
    ),
}


@click.command(cls=Benchmark, help=__doc__)
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the times to this file.")
def main(path: Path | None) -> None:
    find_card()
    source = kernels.FOLDER / "gemv.cu"
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, changes in CHANGES.items():
            text = source.read_text()
            for old, new in changes:
                if text.count(old) != 1:
                    raise WattbitError(f"{source.name} no longer holds {old!r} once; change this benchmark too")
                text = text.replace(old, new)
            kernels.FOLDER = Path(folder) / name.replace(" ", "-")
            shutil.copytree(source.parent, kernels.FOLDER)
            (kernels.FOLDER / source.name).write_text(text)
            kernels._on_card.cache_clear()
            for bits in (2, 3, 4):
                up, down = launches(*SHAPES["Mixtral 8x7B"], bits)
                timed = times({"up": up, "down": down}, repeats=7)
                found[f"{name}, {bits}"] = timed["up"].us, timed["down"].us
                click.echo(f"{name}, {bits} bit: up {timed['up'].us:.1f} us, down {timed['down'].us:.1f} us")
                torch.cuda.empty_cache()
    if path:
        write_json(path, found)
        about(path)


if __name__ == "__main__":
    main()
