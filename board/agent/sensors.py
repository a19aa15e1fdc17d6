"""The sensors that a board or a computer has of its own: hwmon, PYNQ's rails, RAPL, NVML."""

import ctypes
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wattbit.board.agent.power import PowerSource, at_midpoint
from wattbit.errors import WattbitError

HWMON = Path("/sys/class/hwmon")
POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"
RAPL_INTERVAL_S = 0.002  # the counters advance about every millisecond
RAPL_WAIT_S = 0.1


class HwmonSource:
    """One `power*_input` file of the kernel's hwmon class, in microwatts."""

    def __init__(self, path: Path, rail: str) -> None:
        self.path = path
        self.rail = rail

    def read(self) -> tuple[float, float]:
        return at_midpoint(self._watts)

    def _watts(self) -> float:
        try:
            text = self.path.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise WattbitError(f"power sensor {self.rail} cannot be read: {error}") from None
        if not text.isdecimal():
            raise WattbitError(f"power sensor {self.rail} reads {text!r}, which is no number of microwatts")
        return int(text) * 1e-6


class RailSource:
    """One rail of `pynq.get_rails()`, whose reading of 0 also means that libsensors is missing."""

    def __init__(self, rail: str) -> None:
        from pynq import get_rails

        rails = get_rails()
        if rail not in rails:
            raise WattbitError(f"pynq knows no rail {rail}; it knows {', '.join(rails) or 'none'}")
        self.rail = rail
        self._sensor = rails[rail].power

    def read(self) -> tuple[float, float]:
        return at_midpoint(self._watts)

    def _watts(self) -> float:
        value = float(self._sensor.value)
        if value <= 0:
            raise WattbitError(f"rail {self.rail} reads {value:g} W: install libsensors, or read it through hwmon")
        return value


class RaplSource:
    """A RAPL domain ("package-0"): the mean power between two readings of its energy counter, which wraps around."""

    def __init__(self, rail: str, root: Path = POWERCAP) -> None:
        self.rail = rail
        domains = {path.parent: path.read_text().strip() for path in sorted(root.glob("*rapl*:*/name"))}
        found = [domain for domain, name in domains.items() if name == rail]
        if not found:
            raise WattbitError(f"RAPL has no domain {rail}; it has {', '.join(domains.values()) or 'none'}")
        self._counter = found[0] / "energy_uj"
        self._range_j = int((found[0] / "max_energy_range_uj").read_text()) * 1e-6
        self._last = at_midpoint(self._joule)

    def read(self) -> tuple[float, float]:
        deadline_s = time.monotonic() + RAPL_WAIT_S
        while True:
            (before_s, before_j), (now_s, now_j) = self._last, at_midpoint(self._joule)
            if now_j != before_j and now_s - before_s >= RAPL_INTERVAL_S:
                self._last = now_s, now_j
                return (before_s + now_s) / 2, (now_j - before_j) % self._range_j / (now_s - before_s)
            if now_s > deadline_s:
                raise WattbitError(f"the energy counter of RAPL domain {self.rail} stands still")
            time.sleep(RAPL_INTERVAL_S)

    def _joule(self) -> float:
        try:
            return int(self._counter.read_text()) * 1e-6
        except (OSError, ValueError) as error:
            raise WattbitError(f"RAPL domain {self.rail} cannot be read: {error}; run as root") from None


class NvmlSource:
    """A whole NVIDIA GPU's board power, by its index ("gpu0"), from the driver's NVML."""

    def __init__(self, rail: str) -> None:
        self.rail = rail
        if not (rail.startswith("gpu") and rail[3:].isdigit()):
            raise WattbitError(f"an NVML rail is written like gpu0, not {rail!r}")
        try:
            self._nvml = ctypes.CDLL(NVML)
        except OSError as error:
            raise WattbitError(f"NVML cannot be opened: {error}; install NVIDIA's driver") from None
        self._device = ctypes.c_void_p()
        self._check(self._nvml.nvmlInit_v2())
        self._check(self._nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(rail[3:])), ctypes.byref(self._device)))

    def read(self) -> tuple[float, float]:
        return at_midpoint(self._watts)

    def _watts(self) -> float:
        milliwatts = ctypes.c_uint()
        self._check(self._nvml.nvmlDeviceGetPowerUsage(self._device, ctypes.byref(milliwatts)))
        return milliwatts.value * 1e-3

    def _check(self, status: int) -> None:
        if status:
            self._nvml.nvmlErrorString.restype = ctypes.c_char_p
            reason = self._nvml.nvmlErrorString(ctypes.c_int(status)).decode()
            raise WattbitError(f"NVML does not read {self.rail}: {reason}")


def hwmon_sensors(root: Path = HWMON) -> dict[str, Path]:
    """Power inputs that the kernel offers, by `chip/label` or `chip/powerN`.

    Where two chips have one name, the bus address tells them apart: `ina226@0-0041/power1`.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(root.glob("hwmon*/power*_input")):
        chip = (path.parent / "name").read_text().strip()
        label = path.with_name(path.name.replace("_input", "_label"))
        name = label.read_text().strip() if label.is_file() else path.name.removesuffix("_input")
        found.setdefault(f"{chip}/{name}", []).append(path)
    sensors = {}
    for name, paths in found.items():
        for path in paths:
            chip, _, rest = name.partition("/")
            address = (path.parent / "device").resolve().name
            sensors[name if len(paths) == 1 else f"{chip}@{address}/{rest}"] = path
    return sensors


def open_source(settings: Mapping[str, Any], root: Path = HWMON) -> PowerSource:
    """The sensor that a target's [power] table names: `source` hwmon, pynq, rapl or nvml, and its `rail`.

    `rails` gives sensors names of their own: what it calls INT may be ina226_u76/power1 in hwmon's words.
    """
    source, rail = settings.get("source"), str(settings.get("rail", ""))
    sensor = settings.get("rails", {}).get(rail, rail)
    if source == "pynq":
        return RailSource(sensor)
    if source == "rapl":
        return RaplSource(sensor)
    if source == "nvml":
        return NvmlSource(sensor)
    if source == "hwmon":
        sensors = hwmon_sensors(root)
        if sensor not in sensors:
            raise WattbitError(f"hwmon offers no sensor {sensor}; it offers {', '.join(sensors) or 'none'}")
        return HwmonSource(sensors[sensor], rail)
    raise WattbitError(f"no power sensor of this board can be read from it (source {source}); use an external meter")


def open_all(settings: Mapping[str, Any]) -> dict[str, PowerSource]:
    """Every rail that a target's [power] table names, by its name."""
    names = [str(settings["rail"]), *settings.get("rails", {})]
    return {name: open_source({**settings, "rail": name}) for name in dict.fromkeys(names)}
