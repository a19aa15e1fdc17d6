"""What a benchmark found, in figures that people compare, and as the table that they read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wattbit.board.bundle import bundle_bytes
from wattbit.plan import Provenance

if TYPE_CHECKING:
    from wattbit.board.weigh import Weighing

NO_ARM_TIME = "emulated ARM cores have no time of their own; measure on a real board"
QUANTILES = (50, 95, 99)


@dataclass(frozen=True)
class Findings:
    """What the steps of one benchmark gave."""

    manifest: dict[str, Any]
    host: str
    agent: dict[str, Any]
    fpga: dict[str, Any] | None
    arm: dict[str, Any] | None
    latency: dict[str, Any]
    weighing: "Weighing"

    @property
    def per_token(self) -> int:
        """A token goes through every MoE layer, there to top_k experts."""
        return int(self.manifest["model"]["layers"] * self.manifest["model"]["top_k"])

    @property
    def provenance(self) -> Provenance:
        return "simulated" if self.manifest["toolchain"] == "virtual" else "measured"


def summarise(found: Findings) -> dict[str, Any]:
    """The benchmark's result, with its table in `summary`."""
    manifest = found.manifest
    packets = (found.fpga or found.arm or {})["packets"]
    fpga = found.fpga and _fpga(found, found.fpga)
    arm = found.arm and _arm(found.arm, found.per_token)
    ms_per_token = (fpga or arm or {})["ms_per_token"]
    result = {
        "target": manifest["target"]["name"],
        "board": found.host,
        "toolchain": manifest["toolchain"],
        "bundle": manifest["digest"],
        "allocation_digest": manifest["allocation_digest"],
        "design_digest": manifest["design"]["digest"],
        "bit_exact": True,  # any difference has raised
        "packets": packets,
        "packets_per_token": found.per_token,
        "tokens": packets / found.per_token,
        "fpga": fpga,
        "arm": arm,
        "latency": _latency(found),
        "throughput": {"tokens_per_s": 1e3 / ms_per_token, "provenance": found.provenance},
        "energy": _energy(found),
        "memory": _memory(found),
        "agent": found.agent,
    }
    return result | {"summary": table(result)}


def _fpga(found: Findings, entry: dict[str, Any]) -> dict[str, Any]:
    cycles_per_token = entry["cycles"] * found.per_token / entry["packets"]
    return {
        "packets": entry["packets"],
        "cycles": entry["cycles"],
        "clock_mhz": found.agent["clock_mhz"],
        "cycles_per_token": cycles_per_token,
        "ms_per_token": cycles_per_token / found.agent["clock_mhz"] * 1e-3,
        "provenance": found.provenance,
    }


def _arm(entry: dict[str, Any], per_token: int) -> dict[str, Any]:
    if entry["wall_s"] is None:
        return {"packets": entry["packets"], "ms_per_token": None, "reason": NO_ARM_TIME}
    ms_per_token = entry["wall_s"] * 1e3 * per_token / entry["packets"]
    return {"packets": entry["packets"], "ms_per_token": ms_per_token, "provenance": "measured"}


def _latency(found: Findings) -> dict[str, Any]:
    """Quantiles over launches of one token in one layer: the accelerator's cycles, and with software where it has time.

    A quantile of n launches needs n >= 100 / (100 - q) of them, else it is their largest by another name: None.
    """
    cycles, walls_s = found.latency["cycles"], found.latency["wall_s"]
    clock_mhz = found.agent["clock_mhz"]
    return {
        "launches": len(cycles or walls_s),
        "packets_per_launch": found.latency["packets"],
        "fpga_us": None if cycles is None else _quantiles(np.array(cycles) / clock_mhz),
        "with_software_us": None if walls_s is None else _quantiles(np.array(walls_s) * 1e6),
        "provenance": found.provenance,
    }


def _quantiles(values: np.ndarray[Any, Any]) -> dict[str, float | None]:
    return {f"p{q}": float(np.percentile(values, q)) if len(values) >= 100 / (100 - q) else None for q in QUANTILES}


def _energy(found: Findings) -> dict[str, Any]:
    """The energy of an active window, and of a token: net and with idle, each with half its 95 % interval."""
    energy, weighing = found.weighing.energy, found.weighing
    names = ("net_mj_per_token", "net_mj_per_token_half", "absolute_mj_per_token", "absolute_mj_per_token_half")
    if energy is None:
        return {"reason": weighing.reason, "rail": None, "provenance": None, "pairs": 0, **dict.fromkeys(names)}
    pairs = weighing.pairs
    tokens = sum(pair["packets"] for pair in pairs) / found.per_token / energy.pairs
    joules = (energy.net_j, energy.net_half_j, energy.absolute_j, energy.absolute_half_j)
    seconds = [pair["windows"][-2][2] - pair["windows"][-2][1] for pair in pairs]
    return energy.to_json() | {
        "reason": None,
        "stopped": weighing.stopped,
        "interval": energy.net_half_j / abs(energy.net_j),
        "tokens_per_window": tokens,
        "tokens_per_s": tokens * energy.pairs / sum(seconds),
        "launches": sum(pair["launches"] for pair in pairs),
        "launches_executed": sum(pair["executed"] for pair in pairs),
        "segments": len({pair["segment"] for pair in pairs}),
        "conditions": _ranges([one for pair in pairs for one in pair["conditions"]]),
        **{name: joule / tokens * 1e3 for name, joule in zip(names, joules, strict=True)},
    }


def _ranges(conditions: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, list[float]]]:
    """Least and greatest value of each temperature and clock over the windows."""
    values: dict[str, dict[str, list[float]]] = {}
    for one in conditions:
        for group, readings in one.items():
            for name, value in readings.items():
                values.setdefault(group, {}).setdefault(name, []).append(value)
    return {g: {name: [min(v), max(v)] for name, v in names.items()} for g, names in values.items()}


def _memory(found: Findings) -> dict[str, Any]:
    model = found.manifest["model"]
    weights = 2 * model["d_model"] * model["d_hidden"]
    bits = sum(expert["bits"][0] for expert in found.manifest["experts"].values()) * weights
    return {
        "expert_weight_bytes": -(-bits // 8),
        "bundle_bytes": bundle_bytes(found.manifest),
        "agent_peak_bytes": found.agent["agent_peak_bytes"],
    }


def table(result: dict[str, Any]) -> str:
    """One line a figure, with its provenance."""
    energy, latency, memory, throughput = (result[name] for name in ("energy", "latency", "memory", "throughput"))

    def quantiles(record: dict[str, float | None]) -> str:
        return ", ".join(f"{name} {'-' if value is None else f'{value:.1f}'}" for name, value in record.items())

    lines = [
        ("board", f"{result['board']} ({result['target']}), bundle {result['bundle']}"),
        ("outputs", f"{result['packets']} vectors bit-exact"),
    ]
    for name, words in (("fpga_us", "latency, FPGA"), ("with_software_us", "latency")):
        if latency[name]:
            figures = f"{quantiles(latency[name])} us a launch ({latency['launches']}; {latency['provenance']})"
            lines.append((words, figures))
    lines.append(("throughput", f"{throughput['tokens_per_s']:,.0f} tokens/s ({throughput['provenance']})"))
    if energy["reason"]:
        lines.append(("energy", f"none: {energy['reason']}"))
    else:
        for name in ("net", "absolute"):
            value, half = energy[f"{name}_mj_per_token"], energy[f"{name}_mj_per_token_half"]
            lines.append((f"energy, {name}", f"{value:.4g} ± {half:.2g} mJ/token ({energy['provenance']})"))
        step = "none seen" if energy["step_w"] is None else f"{energy['step_w'] * 1e3:.3g} mW"
        lines.append(
            (
                "sensor",
                f"{energy['rail']}: {energy['samples']} readings, {energy['updates']} updates, steps {step}, "
                f"{energy['pairs']} pairs, ended by {energy['stopped']}",
            )
        )
    weights, bundle = memory["expert_weight_bytes"], memory["bundle_bytes"]
    lines.append(("memory", f"{weights:,} bytes of expert weights, {bundle:,} of the bundle"))
    return "\n".join(f"  {name:<18}{text}" for name, text in lines)
