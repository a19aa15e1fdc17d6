"""Kernels to object files by TVM in a process of its own, and those to a library or program by the C compiler."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from wattbit.errors import ToolError
from wattbit.files import atomic
from wattbit.processes import execute
from wattbit.tvm_schedules.cores import Core
from wattbit.tvm_schedules.layout import LAYOUT_VERSION

RUNNER = Path(__file__).parent / "runner"
PARTS = ("expert.c", "matrix.c", "pool.c", "timing.c")
FLAGS = ("-std=c11", "-O3", "-fPIC", "-Wall", "-Wextra")


TILES = (4, 1)  # tokens that one kernel call multiplies, the most first


@dataclass(frozen=True)
class Kernel:
    """Products of matrices of one width with the activations of so many tokens, for any shape."""

    weight_bits: int
    tokens: int
    grouped: bool

    @property
    def name(self) -> str:
        return f"wb_gemm_w{self.weight_bits}_t{self.tokens}_g{int(self.grouped)}"


def kernels_for(weight_bits: Iterable[int], grouped: bool = False) -> tuple[Kernel, ...]:
    """The kernels that matrices of these widths need, each once; with `grouped` also those with a scale a group."""
    kinds = (False, True) if grouped else (False,)
    return tuple(Kernel(b, tokens, kind) for b in sorted(set(weight_bits)) for kind in kinds for tokens in TILES)


def emit_objects(kernels: tuple[Kernel, ...], core: Core, folder: Path) -> None:
    """Write `folder`/NAME.o for each kernel; see wattbit.tvm_schedules.emit."""
    request = {
        "core": core.name,
        "tilings": [(bits, asdict(tiling)) for bits, tiling in core.tilings],
        "kernels": [asdict(kernel) | {"name": kernel.name} for kernel in kernels],
    }
    run_tool([sys.executable, "-m", "wattbit.tvm_schedules.emit", str(folder)], json.dumps(request))


def link_library(kernels: tuple[Kernel, ...], core: Core, objects: Path, out: Path, more: Sequence[str] = ()) -> None:
    """Link the kernels in the folder `objects` and the runner to the shared library `out`.

    more: further sources and flags of the compiler.
    """
    # -Bsymbolic: a library of another core in the same process must not lend its kernels
    _link(kernels, core, objects, ["-shared", "-Wl,-Bsymbolic", *more], out)


def link_program(
    kernels: tuple[Kernel, ...], core: Core, objects: Path, main: Path, out: Path, more: Sequence[str] = ()
) -> None:
    """Link the static program of the C file `main`; `more` as in link_library."""
    _link(kernels, core, objects, ["-static", str(main), *more], out)
    out.chmod(0o755)


def _link(kernels: tuple[Kernel, ...], core: Core, objects: Path, arguments: list[str], out: Path) -> None:
    layouts = [core.layout(bits) for bits in sorted({kernel.weight_bits for kernel in kernels})]
    definitions = {
        "WB_WIDTHS": " ".join(f"W({each.weight_bits},{each.group_rows},{each.zero})" for each in layouts),
        "WB_KERNELS": " ".join(f"K({k.weight_bits},{k.tokens},{int(k.grouped)})" for k in kernels),
        "WB_LAYOUT_VERSION": str(LAYOUT_VERSION),
        "WB_VECTOR_BYTES": str(core.vector_bytes),
    }
    plain = {"WB_CORE": f'"{core.name}"', "WB_FEATURES": " ".join(f"F({name})" for name in core.required)}
    features = objects / "features.o"
    remedy = f"it needs the Debian packages {core.packages}"
    run_tool(
        [core.compiler, *FLAGS, *_defined(plain), "-c", str(RUNNER / "features.c"), "-o", str(features)], remedy=remedy
    )
    with atomic(out) as temporary:
        run_tool(
            [
                *(core.compiler, *FLAGS, *core.compiler_flags, *_defined(definitions)),
                *("-s", "-Wl,--build-id=none"),  # the same input gives the same bytes
                *(str(RUNNER / name) for name in PARTS),
                *arguments,
                *(str(objects / f"{kernel.name}.o") for kernel in kernels),
                *(str(features), "-pthread", "-o", str(temporary)),
            ],
            remedy=remedy,
        )


def _defined(definitions: dict[str, str]) -> list[str]:
    return [f"-D{name}={value}" for name, value in definitions.items()]


def run_tool(command: list[str], text: str = "", remedy: str = "") -> str:
    """Run a program with `text` as its input; returns what it wrote to stderr, raises ToolError when it fails."""
    done = execute(command, text=text)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr, remedy)
    return done.stderr
