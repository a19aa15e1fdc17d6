"""Times the passes of tokens through a model's experts: on this machine, or on a board, where it runs as a program.

Every expert's two packed matrices lie at a place of their own, as a model's do, so that what a cache keeps of them from
one visit to the next is what it would keep. A pass visits experts in order; each visit is the two products of an expert
with so many tokens. Standard library and NumPy only.
"""

import base64
import ctypes
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.layout import DEPTH_UNIT, padded
from wattbit.tvm_schedules.timing import COLD_BYTES, PAGE, Matrix, Product, Timer

Visit = tuple[int, int]
"""An expert, by its number, and the tokens that it gets."""

REPEATS = 5
POWERCAP = Path("/sys/class/powercap")
TICK_S = 1e-3  # RAPL's counters advance about so often (Intel's SDM, volume 3B, "Package RAPL Domain")
TICKS = 20  # fewer are too coarse for a mean power


class Passes(Timer):
    """Experts [rows d_hidden, depth d_model] and back in memory, and the time of visiting them."""

    def __enter__(self) -> "Passes":
        return self

    def times(
        self, bits: Sequence[int], d_model: int, d_hidden: int, visits: Sequence[Visit], least_s: float
    ) -> tuple[list[float], "float | None"]:
        """Seconds of each visit, the median over repeats of the whole pass, and joules of one pass.

        bits: weight width of each expert. least_s: the pass is repeated for so long, REPEATS times at least. Joules are
        the mean power of the processor's packages during all repeats, what they take idle included, times a pass's
        seconds; None where the kernel shows no counter (RAPL), or the repeats take less than TICKS of its ticks.
        Raises WattbitError when a width has no kernel.
        """
        experts = self._place(bits, d_model, d_hidden)
        most = max(tokens for _, tokens in visits)
        width = padded(max(d_model, d_hidden), DEPTH_UNIT)
        x = np.ones((most, width), np.int8)
        y = np.zeros((most, max(d_model, d_hidden)), np.int32)
        source, result = ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data)
        found: list[list[float]] = [[] for _ in visits]
        seconds = (ctypes.c_double * 2)()
        end_s = time.monotonic() + least_s
        for repeat in count():
            if repeat > REPEATS and time.monotonic() > end_s:
                break
            if repeat == 1:
                before, began_s = package_j(), time.monotonic()
            for number, (expert, tokens) in enumerate(visits):
                self._library.wb_time_gemm(self._pool, experts[expert], 2, source, tokens, result, 2, seconds)
                if repeat:  # the first pass is where the last one left the caches
                    found[number].append(seconds[0] + seconds[1])
        power_w = mean_power_w(before, package_j(), time.monotonic() - began_s)
        if min(map(min, found)) < 0:
            raise WattbitError(f"an expert of {d_model} to {d_hidden} did not run; see the kernels' limits in matrix.h")
        times = [median(each) for each in found]
        return times, None if power_w is None else power_w * sum(times)

    def _place(self, bits: Sequence[int], d_model: int, d_hidden: int) -> "list[Any]":
        """Each expert's two matrices, one behind the other; from the block's start again where it is full."""
        start, found = 0, []
        for each in bits:
            products = Product(each, d_hidden, d_model), Product(each, d_model, d_hidden)
            sizes = [padded(self.weight_bytes(product), PAGE) for product in products]
            if start + sum(sizes) > len(self._block):
                start = 0
            if sum(sizes) > len(self._block):
                raise WattbitError(f"an expert of {sum(sizes)} bytes is larger than the {len(self._block)} timed in")
            pair = (Matrix * 2)(self._matrix(products[0], start), self._matrix(products[1], start + sizes[0]))
            start += sum(sizes)
            found.append(pair)
        return found


def memory_for(total_bytes: int) -> int:
    """The block to time a model in whose experts take so many bytes; larger ones are cold anyway."""
    return min(2 * total_bytes, COLD_BYTES)


def package_j(powercap: Path = POWERCAP) -> "dict[str, tuple[float, float]] | None":
    """Joules that each processor package has counted, and where its counter begins again; None where none is shown."""
    found = {}
    for zone in sorted(powercap.glob("intel-rapl:*")):
        if zone.name.count(":") == 1:  # not a part of a package
            try:
                microjoules = [float((zone / name).read_text()) for name in ("energy_uj", "max_energy_range_uj")]
            except (OSError, ValueError):  # readable by root alone on most systems
                return None
            found[zone.name] = (microjoules[0] * 1e-6, microjoules[1] * 1e-6)
    return found or None


def mean_power_w(
    before: "dict[str, tuple[float, float]] | None", after: "dict[str, tuple[float, float]] | None", elapsed_s: float
) -> "float | None":
    """Watts between two readings of `package_j`; None without one, when too close together, or of one that stands."""
    if before is None or after is None or elapsed_s < TICKS * TICK_S:
        return None
    return sum((after[name][0] - joules) % limit for name, (joules, limit) in before.items()) / elapsed_s or None


def _opened(library: bytes, core: str, threads: int, memory: int) -> Passes:
    """Of a library's bytes; its file is gone once it is loaded, so that a program that is killed leaves none behind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        path.write_bytes(library)
        return Passes(path, core, threads, memory)


def main(arguments: Iterable[str]) -> int:
    """A pass a line, from standard input; the first line brings the library and where it runs.

    {"library": base64, "core", "threads", "memory"}, then {"bits", "d_model", "d_hidden", "visits", "least_s"}; the
    replies are {"seconds", "joules"}, or {"error"}.
    """
    out = sys.stdout
    first: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    try:
        with _opened(base64.b64decode(first["library"]), first["core"], first["threads"], first["memory"]) as passes:
            print(json.dumps({"ready": first["core"]}), file=out, flush=True)
            for line in sys.stdin.buffer:
                request = json.loads(line)
                seconds, joules = passes.times(**request)
                print(json.dumps({"seconds": seconds, "joules": joules}), file=out, flush=True)
    except WattbitError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
    return 0
