"""A model packed for one core into the weights file, and the runtime compiled for it."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.files import digest_json, sha256_file, write_json
from wattbit.progress import Progress, silent
from wattbit.tvm_schedules import packing
from wattbit.tvm_schedules.cores import Core, find_core
from wattbit.tvm_schedules.layout import LAYOUT_VERSION, Layout
from wattbit.tvm_schedules.model import format as weights_file
from wattbit.tvm_schedules.model.format import Item
from wattbit.tvm_schedules.model.source import Source
from wattbit.tvm_schedules.toolchain import Kernel, emit_objects, kernels_for, link_library, link_program

SOURCES = Path(__file__).parent
PARTS = ("session.c", "attention.c", "mixture.c", "sample.c", "weights.c", "multiply.c")
LIBRARY, WEIGHTS, RECORD = "libwattbit_model.so", "model.wattbit", "model.json"


def build(
    source: Source, core: str, out: Path, progress: Progress = silent, tilings: Path | None = None
) -> dict[str, Any]:
    """Write out/libwattbit_model.so, out/model.wattbit and, last, out/model.json, whose content it returns.

    tilings: a file that `wattbit tune` wrote. Raises WattbitError for an unknown core, ToolError when its compiler
    fails.
    """
    chosen = find_core(core, tilings)
    record_path = out / RECORD
    record_path.unlink(missing_ok=True)  # a folder without it is not a build
    progress(f"runtime for {core}", 0, 2)
    link(kernels_of(source), chosen, out / LIBRARY)
    progress(f"runtime for {core}", 1, 2)
    pack(source, chosen, out / WEIGHTS)
    record = write_record(chosen, out)
    progress(f"runtime for {core}", 2, 2)
    return record


def write_record(core: Core, out: Path) -> dict[str, Any]:
    """Write out/model.json, which says what library and weights in `out` are, and return its content."""
    with weights_file.opened(out / WEIGHTS) as stream:
        config, _, digest = weights_file.read_table(stream)
    record: dict[str, Any] = {
        "core": core.name,
        "arch": core.arch,
        "config": config.to_json(),
        "library": {"file": LIBRARY, "sha256": sha256_file(out / LIBRARY)},
        "weights": {"file": WEIGHTS, "bytes": (out / WEIGHTS).stat().st_size, "digest": digest},
    }
    record["digest"] = digest_json(record)
    write_json(out / RECORD, record)
    return record


def pack(source: Source, core: Core, path: Path) -> str:
    """Write the weights file of a model for a core; its digest."""
    items = [item for name in source.shapes for item in _items(source, core, name)]
    return weights_file.write(path, source.config, layout_words(core), items)


def layout_words(core: Core) -> tuple[int, int, int, int]:
    """What file and library must agree on about packed matrices."""
    return LAYOUT_VERSION, core.vector_bytes, core.layout_word, core.layout(8).zero


def _items(source: Source, core: Core, name: str) -> list[Item]:
    """The tensors of the weights file that one of the source becomes; scales of groups come with their matrix."""
    rows, depth = source.shapes[name]
    owner = name.removesuffix(".scale")
    if name not in source.bits:
        if owner in source.group and owner != name:
            return []
        kind = "int32" if name.endswith((".multiplier", ".integers")) else "float32"
        return [Item(name, kind, rows, depth, lambda: _bytes(source.load(name), kind))]
    bits, group = source.bits[name], source.group.get(name, 0)
    layout = core.layout(bits)
    items = [Item(name, "packed", rows, depth, lambda: packing.pack(source.load(name), layout).tobytes(), bits, group)]
    if group:
        scales = layout.groups(rows) * layout.group_rows * (depth // group)
        items.append(Item(f"{name}.scale", "float32", scales, 1, lambda: _scales(source, name, layout)))
    if f"{name}.multiplier" in source.shapes:
        items.append(Item(f"{name}.sum_bias", "int32", rows, 1, lambda: _sum_bias(source, name)))
    return items


def _scales(source: Source, name: str, layout: Layout) -> bytes:
    return _bytes(packing.pack_scales(source.load(f"{name}.scale"), layout), "float32")


def _sum_bias(source: Source, name: str) -> bytes:
    """What is added to an integer expert's sums: hidden activations are passed less HIDDEN_OFFSET."""
    offset = packing.HIDDEN_OFFSET if name.endswith(".down") else 0
    return _bytes(offset * source.load(name).sum(axis=1, dtype=np.int32), "int32")


def _bytes(array: NDArray[Any], kind: str) -> bytes:
    wanted = np.dtype(kind)
    if array.dtype != wanted:
        raise WattbitError(f"a {kind} tensor of the exported model is {array.dtype}; export it again")
    return np.ascontiguousarray(array, wanted.newbyteorder("<")).tobytes()


def kernels_of(source: Source) -> tuple[Kernel, ...]:
    """The kernels that a model needs."""
    return kernels_for(source.bits.values(), grouped=bool(source.group))


def link(kernels: tuple[Kernel, ...], core: Core, out: Path, program: bool = False) -> None:
    """Compile the runtime with a model's kernels: a shared library, or a static program (generate.c)."""
    words = ",".join(str(word) for word in layout_words(core))
    more = [f"-DWB_MODEL_LAYOUT={words}", *(str(SOURCES / part) for part in PARTS)]
    more += ["-ffp-contract=off", "-fno-math-errno"]  # the same bits on every core; no errno of sqrt
    with tempfile.TemporaryDirectory() as name:
        objects = Path(name)
        emit_objects(kernels, core, objects)
        if program:
            link_program(kernels, core, objects, SOURCES / "generate.c", out, more)
        else:
            link_library(kernels, core, objects, out, more)
