"""Where watts come from: the interface of power sources, and the documented model of a virtual board's rail.

A sensor that cannot be read raises. It never gives 0: a policy would learn to like it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class PowerSource(Protocol):
    """A physical sensor; `rail` says what it sees, in the board's own words."""

    rail: str

    def read(self) -> tuple[float, float]:
        """A reading: when, in seconds of the monotonic clock, and watts. WattbitError when there is none."""
        ...


def at_midpoint(read_w: Callable[[], float]) -> tuple[float, float]:
    """A reading that is asked for, with the middle of the time that it took."""
    before_s = time.monotonic()
    power_w = read_w()
    return (before_s + time.monotonic()) / 2, power_w


@dataclass(frozen=True)
class PowerModel:
    """What a virtual board draws. It is made up, of the order of a small Zynq board, and measured on none:

        launch power = idle_w + fabric_w + work / time
        work = sum over multiplications of (mac_j + bit_j * weight_bits * act_bits) + moved_j * bits moved

    idle_w: the board with the design loaded and no launch under way.
    fabric_w: what the clocked logic, shell and memory port add during a launch.
    mac_j: joule per multiply-accumulate of any width (operand reads, accumulator).
    bit_j: joule per one-bit product in it, which stands for the datapath's toggles.
    moved_j: joule per bit that the memory ports move, packets and streamed weights.
    noise_w: standard deviation of a reading. step_w: its quantisation. rate_hz: readings a second.
    """

    idle_w: float = 1.6
    fabric_w: float = 0.12
    mac_j: float = 2.0e-12
    bit_j: float = 0.05e-12
    moved_j: float = 20e-12
    noise_w: float = 0.008
    step_w: float = 0.00125
    rate_hz: float = 20.0

    def launch_w(self, macs: Mapping[tuple[int, int], int], seconds: float, moved_bits: int = 0) -> float:
        """Mean power during a launch of `seconds`: multiplications at each (weight, act) width, bits over the port."""
        work_j = sum(n * (self.mac_j + self.bit_j * weight * act) for (weight, act), n in macs.items())
        work_j += self.moved_j * moved_bits
        return self.idle_w + self.fabric_w + work_j / seconds
