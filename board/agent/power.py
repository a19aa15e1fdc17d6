"""Where watts come from: a board's sensor, or the documented model of a virtual board's rail.

A sensor that cannot be read raises. It never gives 0: a policy would learn to like it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from wattbit.errors import WattbitError

HWMON = Path("/sys/class/hwmon")


class PowerSource(Protocol):
    """A physical sensor; `rail` says what it sees, in the board's own words."""

    rail: str

    def read_w(self) -> float:
        """The present reading in watts; WattbitError when there is none."""
        ...


class HwmonSource:
    """One `power*_input` file of the kernel's hwmon class, in microwatts."""

    def __init__(self, path: Path, rail: str) -> None:
        self.path = path
        self.rail = rail

    def read_w(self) -> float:
        try:
            return int(self.path.read_text()) * 1e-6
        except (OSError, ValueError) as error:
            raise WattbitError(f"power sensor {self.rail} cannot be read: {error}") from None


class RailSource:
    """One rail of `pynq.get_rails()`, whose reading of 0 also means that libsensors is missing."""

    def __init__(self, rail: str) -> None:
        from pynq import get_rails

        rails = get_rails()
        if rail not in rails:
            raise WattbitError(f"pynq knows no rail {rail}; it knows {', '.join(rails) or 'none'}")
        self.rail = rail
        self._sensor = rails[rail].power

    def read_w(self) -> float:
        value = float(self._sensor.value)
        if value <= 0:
            raise WattbitError(f"rail {self.rail} reads {value:g} W: install libsensors, or read it through hwmon")
        return value


def hwmon_sensors(root: Path = HWMON) -> dict[str, Path]:
    """Power inputs that the kernel offers, by `chip/label` or `chip/powerN`."""
    found = {}
    for path in sorted(root.glob("hwmon*/power*_input")):
        chip = (path.parent / "name").read_text().strip()
        label = path.with_name(path.name.replace("_input", "_label"))
        name = label.read_text().strip() if label.is_file() else path.name.removesuffix("_input")
        found[f"{chip}/{name}"] = path
    return found


def open_source(settings: Mapping[str, Any], root: Path = HWMON) -> PowerSource:
    """The sensor that a target's [power] table names: `source` hwmon or pynq, and its `rail`."""
    source, rail = settings.get("source"), str(settings.get("rail", ""))
    if source == "pynq":
        return RailSource(rail)
    if source == "hwmon":
        sensors = hwmon_sensors(root)
        if rail not in sensors:
            raise WattbitError(f"hwmon offers no sensor {rail}; it offers {', '.join(sensors) or 'none'}")
        return HwmonSource(sensors[rail], rail)
    raise WattbitError(f"no power sensor of this board can be read from it (source {source}); use an external meter")


@dataclass(frozen=True)
class PowerModel:
    """What a virtual board draws. It is made up, of the order of a small Zynq board, and measured on none:

        launch power = idle_w + fabric_w + sum over multiplications of (mac_j + bit_j * weight_bits * act_bits) / time

    idle_w: the board with the design loaded and no launch under way.
    fabric_w: what the clocked logic, shell and memory port add during a launch.
    mac_j: joule per multiply-accumulate of any width (operand reads, accumulator).
    bit_j: joule per one-bit product in it.
    noise_w: standard deviation of a reading. step_w: its quantisation. rate_hz: readings a second.
    """

    idle_w: float = 1.6
    fabric_w: float = 0.12
    mac_j: float = 2.0e-12
    bit_j: float = 0.05e-12
    noise_w: float = 0.008
    step_w: float = 0.00125
    rate_hz: float = 20.0

    def launch_w(self, macs: Mapping[tuple[int, int], int], seconds: float) -> float:
        """Mean power during a launch of `seconds` that does so many multiplications at each (weight, act) width."""
        work_j = sum(n * (self.mac_j + self.bit_j * weight * act) for (weight, act), n in macs.items())
        return self.idle_w + self.fabric_w + work_j / seconds
