"""The clock that a chip's processing system gives its programmable logic: a PLL's over two dividers.

PL clock 0 is register FPGA0_CLK_CTRL of Zynq-7000 (UG585, chapter Clocks, "PL Clocks") and PL0_REF_CTRL of Zynq
UltraScale+ (UG1085, chapter Clocking, "PL Clocks"): DIVISOR0 and DIVISOR1, six bits each. Vivado lets the I/O PLL, from
which it takes that clock, run at 1000 and at 1500 MHz, less the last digits of the board's oscillator: of the latter
there are 187.5 MHz and 214 MHz, but no 200 MHz.
"""

import math

from wattbit.errors import WattbitError

ZYNQ_PLL_MHZ, ZYNQMP_PLL_MHZ = 1000.0, 1500.0
DIVISOR_MAX = 63


def divisors(source_mhz: float, clock_mhz: float) -> tuple[int, int]:
    """The two dividers, each up to DIVISOR_MAX, of the highest clock from `source_mhz` that is at most `clock_mhz`."""
    total = math.ceil(source_mhz / clock_mhz * (1 - 1e-6)) if clock_mhz > 0 else DIVISOR_MAX**2 + 1
    while total <= DIVISOR_MAX**2:
        second = next((d for d in range(1, DIVISOR_MAX + 1) if total % d == 0 and total // d <= DIVISOR_MAX), None)
        if second is not None:
            return total // second, second
        total += 1
    raise WattbitError(f"no divider makes a clock of {clock_mhz:g} MHz from {source_mhz:g} MHz")


def delivered_mhz(source_mhz: float, clock_mhz: float) -> float:
    """The highest clock that there is from `source_mhz` and that is at most `clock_mhz`."""
    first, second = divisors(source_mhz, clock_mhz)
    return source_mhz / (first * second)
