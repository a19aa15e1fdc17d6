"""Kernels to object files by TVM in a process of its own, and those to a library or program by the C compiler."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from wattbit.errors import ToolError
from wattbit.files import atomic
from wattbit.plan import ExpertShape
from wattbit.processes import execute
from wattbit.tvm_schedules.cores import Core
from wattbit.tvm_schedules.layout import LAYOUT_VERSION

RUNNER = Path(__file__).parent / "runner"


@dataclass(frozen=True, order=True)
class Kernel:
    """A GEMV of one width and shape: [rows] = weights [rows, depth] . [depth]."""

    weight_bits: int
    rows: int
    depth: int

    @property
    def name(self) -> str:
        return f"wb_gemv_w{self.weight_bits}_{self.rows}x{self.depth}"


def kernels_for(weight_bits: Iterable[int], shape: ExpertShape) -> tuple[Kernel, ...]:
    """The kernels that experts of these widths need, each once."""
    sizes = {(shape.d_hidden, shape.d_model), (shape.d_model, shape.d_hidden)}
    return tuple(sorted({Kernel(bits, *size) for bits in weight_bits for size in sizes}))


def emit_objects(kernels: tuple[Kernel, ...], core: Core, folder: Path) -> None:
    """Write `folder`/NAME.o for each kernel; see wattbit.tvm_schedules.emit."""
    request = {"core": core.name, "kernels": [asdict(kernel) | {"name": kernel.name} for kernel in kernels]}
    run_tool([sys.executable, "-m", "wattbit.tvm_schedules.emit", str(folder)], json.dumps(request))


def link_library(kernels: tuple[Kernel, ...], core: Core, objects: Path, out: Path) -> None:
    """Link the kernels in the folder `objects` and the runner to the shared library `out`."""
    # -Bsymbolic: a library of another core in the same process must not lend its kernels
    _link(kernels, core, objects, ["-shared", "-fPIC", "-Wl,-Bsymbolic"], out)


def link_program(kernels: tuple[Kernel, ...], core: Core, objects: Path, out: Path) -> None:
    """Link a static program that runs one expert on a file of inputs; see runner/forward.c."""
    _link(kernels, core, objects, ["-static", str(RUNNER / "forward.c")], out)
    out.chmod(0o755)


def _link(kernels: tuple[Kernel, ...], core: Core, objects: Path, arguments: list[str], out: Path) -> None:
    table = " ".join(f"K({kernel.weight_bits},{kernel.rows},{kernel.depth})" for kernel in kernels)
    with atomic(out) as temporary:
        run_tool(
            [
                core.compiler,
                *("-std=c11", "-O3", "-Wall", "-Wextra", *core.compiler_flags),
                *("-s", "-Wl,--build-id=none"),  # the same input gives the same bytes
                f"-DWB_KERNELS={table}",
                f"-DWB_LAYOUT_VERSION={LAYOUT_VERSION}",
                f"-DWB_VECTOR_BYTES={core.vector_bytes}",
                f"-DWB_GROUP_ROWS={core.group_rows}",
                str(RUNNER / "expert.c"),
                *arguments,
                *(str(objects / f"{kernel.name}.o") for kernel in kernels),
                *("-o", str(temporary)),
            ],
            remedy=f"it needs the Debian packages {core.packages}",
        )


def run_tool(command: list[str], text: str = "", remedy: str = "") -> str:
    """Run a program with `text` as its input; returns what it wrote to stderr, raises ToolError when it fails."""
    done = execute(command, text=text)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr, remedy)
    return done.stderr
