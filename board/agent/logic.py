"""Loading a bundle's design onto the programmable logic, through pynq as it is installed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattbit.board.agent.driver import Driver
from wattbit.clock import DIVISOR_MAX, divisors
from wattbit.errors import WattbitError
from wattbit.shell import INSTANCE

VIRTUAL_TIMEOUT_S = 300.0  # simulation in emulated user space: wall time has no meaning there
REAL_TIMEOUT_S = 10.0
TIMEOUT = "WATTBIT_TIMEOUT_S"  # in the agent's environment: another limit, for a design that takes longer
OSCILLATOR = 1e-3  # two files' figures for one board's clock differ by so much: 33.33 MHz, 33.333 MHz


@dataclass(frozen=True)
class Logic:
    """A loaded design: its driver, and the clock that the PS really gives it."""

    driver: Driver
    clock_mhz: float


def load_logic(bundle: Path, manifest: dict[str, Any]) -> Logic:
    """Load `accel.bit` with `pynq.Overlay`; on a virtual board, onto the simulated device."""
    virtual = manifest["toolchain"] == "virtual"
    if virtual:
        import wattbit.board.agent.simdevice  # noqa: F401  (pynq finds the device by its class)
    from pynq import Clocks, Overlay, allocate

    overlay = Overlay(str(bundle / "accel.bit"))
    clock_mhz = held_mhz(Clocks, manifest["clock_mhz"])
    timeout_s = float(os.environ.get(TIMEOUT, VIRTUAL_TIMEOUT_S if virtual else REAL_TIMEOUT_S))
    images = [bundle / name for name in manifest["design"]["images"]]
    driver = Driver(getattr(overlay, INSTANCE), allocate, manifest["design"]["digest"], timeout_s, images)
    return Logic(driver, clock_mhz)


def held_mhz(clocks: Any, most_mhz: float) -> float:
    """What PL clock 0 of `pynq.Clocks` is, lowered to at most what the design was built for.

    pynq sets the divider that comes nearest to the handoff's frequency from the board's own PLL, which may be another
    than that of the handoff: of 187.5 MHz, from 1000 in place of 1500, it makes 200. Raises WattbitError for a clock
    that cannot be lowered so far.
    """
    if clocks.fclk0_mhz > most_mhz * (1 + OSCILLATOR):
        clocks.set_pl_clk(0, div0=DIVISOR_MAX, div1=1)
        source_mhz = clocks.fclk0_mhz * DIVISOR_MAX
        first, second = divisors(source_mhz, most_mhz * (1 + OSCILLATOR))
        clocks.set_pl_clk(0, div0=first, div1=second)
    found_mhz = float(clocks.fclk0_mhz)
    if found_mhz > most_mhz * (1 + OSCILLATOR):
        raise WattbitError(
            f"the design takes a clock of {most_mhz:g} MHz, and this board's stays at {found_mhz:g} MHz; "
            "see what else sets its clocks, and load again"
        )
    return found_mhz
