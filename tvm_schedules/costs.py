"""What products cost on a core: a roofline of two ceilings, compute and memory, for each weight width.

    seconds = call + max(products * seconds per product, bytes / bytes per second)

On the machine that this is, all of it is measured; for another core compute is modelled from llvm-mca's cycles, and the
memory's bandwidth is the board's own.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

import numpy as np

from wattbit.errors import WattbitError
from wattbit.plan import Provenance
from wattbit.tvm_schedules.cores import Core
from wattbit.tvm_schedules.timing import Product

CALIBRATION = ((1024, 1024), (2048, 2048), (2048, 4096), (8192, 4096))  # rows, depth
IN_CACHE = (512, 1024)
CALL = (8, 8)  # a product that takes no time but its call's
CALL_BYTES = 20_000_000  # what the calls of one repeat read, about


class Times(Protocol):
    """Timer, as far as calibration needs it."""

    def weight_bytes(self, product: Product) -> int: ...
    def products(self, product: Product, calls: int) -> list[float]: ...


@dataclass(frozen=True)
class WidthCost:
    """The ceilings of one weight width."""

    seconds_per_product: float
    bytes_per_s: float


@dataclass(frozen=True)
class CostTable:
    """The costs of one core on so many threads; bytes are those of whole packed matrices, with padding and scales."""

    core: Core
    threads: int
    call_s: float
    widths: dict[int, WidthCost]
    provenance: Provenance

    def seconds(self, product: Product, size: int | None = None) -> float:
        """Of one product whose weights, of `size` bytes where not those of the packed matrix, are not in a cache."""
        if product.weight_bits not in self.widths:
            raise WattbitError(f"no costs of {product.weight_bits} bits on {self.core.name}; calibrate that width")
        cost = self.widths[product.weight_bits]
        if size is None:
            size = self.core.layout(product.weight_bits).matrix_bytes(product.rows, product.depth)
        compute = product.rows * product.depth * product.tokens * cost.seconds_per_product
        return self.call_s + max(compute, size / cost.bytes_per_s)

    def to_json(self) -> dict[str, Any]:
        widths = {str(bits): asdict(cost) for bits, cost in self.widths.items()}
        own = {"core": self.core.name, "threads": self.threads, "call_s": self.call_s, "provenance": self.provenance}
        return own | {"widths": widths}


def modelled(core: Core, cycles: dict[int, float], clock_mhz: float, bytes_per_s: float, threads: int = 1) -> CostTable:
    """The table of a core that is not there: `cycles` a product by weight width, see wattbit.tvm_schedules.cycles."""
    seconds = {bits: each / (clock_mhz * 1e6 * threads) for bits, each in cycles.items()}
    widths = {bits: WidthCost(each, bytes_per_s) for bits, each in seconds.items()}
    return CostTable(core, threads, 0.0, widths, "modelled")


class Calibration:
    """Takes a machine's times in rounds, for other work to come between them, and makes its table of their medians."""

    def __init__(self, core: Core, threads: int, widths: Iterable[int], cold: Times, warm: Times) -> None:
        self._core, self._threads, self._widths = core, threads, tuple(widths)
        self._cold, self._warm = cold, warm
        self._seconds: dict[tuple[int, tuple[int, int]], list[float]] = {}

    def round(self) -> None:
        for bits in self._widths:
            for shape in (*CALIBRATION, IN_CACHE, CALL):
                product = Product(bits, *shape)
                timer = self._cold if shape in CALIBRATION else self._warm
                calls = max(4, min(200, CALL_BYTES // timer.weight_bytes(product)))
                self._seconds.setdefault((bits, shape), []).extend(timer.products(product, calls))

    def table(self) -> CostTable:
        """The call's time, which all widths share, and each width's rate are those of the least relative squares."""
        times = {key: median(seconds) for key, seconds in self._seconds.items()}
        points = [(i, bits, shape) for i, bits in enumerate(self._widths) for shape in CALIBRATION]
        system = np.zeros((len(points), 1 + len(self._widths)))
        for row, (i, bits, shape) in enumerate(points):
            system[row, 0], system[row, 1 + i] = 1, self._cold.weight_bytes(Product(bits, *shape))
            system[row] /= times[bits, shape]
        call, *seconds_per_byte = np.linalg.lstsq(system, np.ones(len(points)), rcond=None)[0].tolist()
        if call < 0:  # too short to be told from noise
            call, seconds_per_byte = 0.0, np.linalg.lstsq(system[:, 1:], np.ones(len(points)), rcond=None)[0].tolist()
        widths = {}
        for bits, each in zip(self._widths, seconds_per_byte, strict=True):
            compute = (times[bits, IN_CACHE] - times[bits, CALL]) / (IN_CACHE[0] * IN_CACHE[1])
            widths[bits] = WidthCost(compute, 1 / each)
        return CostTable(self._core, self._threads, call, widths, "measured")
