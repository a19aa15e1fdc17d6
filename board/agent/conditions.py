"""What the board's temperature and clocks are while it is measured, where the kernel lets them be read."""

from pathlib import Path

SYS = Path("/sys")


def conditions(root: Path = SYS) -> dict[str, dict[str, float]]:
    """`temperature_c` by sensor and `clock_mhz` by core; what cannot be read is not there."""
    temperatures = {}
    for path in sorted(root.glob("class/thermal/thermal_zone*/temp")):
        temperatures[_text(path.with_name("type")) or path.parent.name] = path
    for path in sorted(root.glob("class/hwmon/hwmon*/temp*_input")):
        chip, label = _text(path.with_name("name")), _text(path.with_name(path.name.replace("_input", "_label")))
        temperatures[f"{chip}/{label or path.name.removesuffix('_input')}"] = path
    clocks = {
        path.parent.parent.name: path
        for path in sorted(root.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    }
    return {"temperature_c": _thousandths(temperatures), "clock_mhz": _thousandths(clocks)}


def _thousandths(files: dict[str, Path]) -> dict[str, float]:
    texts = {name: _text(path) for name, path in files.items()}
    return {name: int(text) * 1e-3 for name, text in texts.items() if text.lstrip("-").isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
