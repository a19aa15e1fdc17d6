"""Loading a bundle's design onto the programmable logic, through pynq as it is installed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wattbit.board.agent.driver import Driver
from wattbit.shell import INSTANCE

VIRTUAL_TIMEOUT_S = 300.0  # simulation in emulated user space: wall time has no meaning there
REAL_TIMEOUT_S = 10.0
TIMEOUT = "WATTBIT_TIMEOUT_S"  # in the agent's environment: another limit, for a design that takes longer


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
    timeout_s = float(os.environ.get(TIMEOUT, VIRTUAL_TIMEOUT_S if virtual else REAL_TIMEOUT_S))
    images = [bundle / name for name in manifest["design"]["images"]]
    driver = Driver(getattr(overlay, INSTANCE), allocate, manifest["design"]["digest"], timeout_s, images)
    return Logic(driver, Clocks.fclk0_mhz)
