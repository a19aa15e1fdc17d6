"""Joules off the card's own counter (NVML's total energy), between its ticks.

The counter steps about every 100 ms, so a reading at an arbitrary moment is up to one step old. A window here begins
and ends when the counter was seen to step, while work keeps the card busy: power is the joules between two steps over
the time between them. The first steps are left out: they still hold what the card did before.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from wattbit.errors import WattbitError

TICK_TIMEOUT_S = 2.0
SETTLING_STEPS = 2


@dataclass(frozen=True)
class Power:
    """Mean power over a window between two steps of the counter. error_w: what a step's time being unsure makes."""

    power_w: float
    seconds: float
    error_w: float


class EnergyCounter:
    """The total-energy counter of one card."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def find(cls, device: torch.device) -> "EnergyCounter | None":
        """The card's counter, or None where the card or its driver has none (before Volta, some virtual GPUs)."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except pynvml.NVMLError:
            return None
        return cls(pynvml, handle)

    def read_j(self) -> float:
        """Joules since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3

    def power(self, keep_busy: Callable[[], None], least_s: float) -> Power:
        """Mean power while `keep_busy` is called again and again, over at least `least_s` and one step of the counter.

        WattbitError if the counter stands still.
        """
        for _ in range(SETTLING_STEPS):
            self._step(keep_busy)
        first = self._step(keep_busy)
        last = self._step(keep_busy)
        while last[0] - first[0] < least_s:
            last = self._step(keep_busy)
        seconds = last[0] - first[0]
        power = (last[1] - first[1]) / seconds
        return Power(power, seconds, power * (first[2] + last[2]) / seconds)

    def _step(self, keep_busy: Callable[[], None]) -> tuple[float, float, float]:
        """Wait for the next step: time in the middle of the readings around it, joules, half the time between them."""
        before, begin = self.read_j(), time.perf_counter()
        deadline = begin + TICK_TIMEOUT_S
        while True:
            keep_busy()
            start = time.perf_counter()
            now = self.read_j()
            end = time.perf_counter()
            if now != before:
                return (begin + end) / 2, now, (end - begin) / 2
            if end > deadline:
                raise WattbitError(f"the energy counter did not move in {TICK_TIMEOUT_S} s; measure without energy")
            begin = start
