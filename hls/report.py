"""The report of a board's build: what it takes, how fast it is, what was checked, and what nobody has tried."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.toolchain import Bitstream
from wattbit.plan import Target

NOT_TESTED = {
    "vivado": "**Not hardware-tested, nor was Vivado at hand:** its scripts were written by its documents.",
    "open": "**Not hardware-tested:** the bitstream is well formed, but nobody has loaded one onto a board yet.",
    "virtual": "**A simulated accelerator:** cycles are those of the RTL, there is no bitstream and no timing.",
}
COUNTS = ("lut", "ff", "dsp", "bram18")


@dataclass(frozen=True)
class Speed:
    """Clock cycles of the expert layers a token, simulated, at the clock that the board gives the design."""

    cycles_per_token: float
    clock_mhz: float

    @property
    def tokens_per_s(self) -> float:
        return self.clock_mhz * 1e6 / self.cycles_per_token

    @classmethod
    def of(cls, simulation: Mapping[str, Any], layers: int, top_k: int, clock_mhz: float) -> "Speed":
        """From launches of `vectors` vectors in all in `cycles`; a token sends `top_k` to each of `layers`."""
        return cls(simulation["cycles"] * layers * top_k / simulation["vectors"], clock_mhz)


def report(target: Target, why: str, plan: EnginePlan, design: Mapping[str, Any], bits: Bitstream, speed: Speed) -> str:
    """Markdown. why: why this toolchain; design: the record of `wattbit.hls.build`."""
    lines = [
        f"# {target.title}: toolchain {bits.toolchain}",
        "",
        NOT_TESTED[bits.toolchain],
        "",
        f"- Toolchain {why}.",
        f"- Part {bits.part}; "
        + ", ".join(f"{tool} {version}" for tool, version in sorted(bits.tool_versions.items())),
        f"- {speed.tokens_per_s:,.0f} tokens/s in the expert layers: {speed.cycles_per_token:.1f} cycles/token "
        f"(simulated) at {bits.clock_mhz:g} MHz",
        f"- Timing: {_timing(bits)}",
        f"- RTL simulation: {design['simulation']['vectors']} exported vectors, bit-exact with PyTorch, "
        "with and without random stalls",
        "",
        f"| resource | planned (modelled) | engines (yosys) | used ({bits.toolchain}) | there are |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in COUNTS:
        planned = getattr(plan.total, name)
        counted = sum(engine["resources"][name] for engine in design["engines"])
        used = bits.utilisation.get(name)
        lines.append(f"| {name} | {planned} | {counted} | {'-' if used is None else used} | {getattr(target, name)} |")
    lines += [
        "",
        "| engine | weights | products | PE x SIMD, fc1; fc2 | experts | cycles/vector |",
        "|---|---|---|---|---:|---:|",
    ]
    for spec, cycles in zip(plan.classes, plan.cycles_per_vector, strict=True):
        home = "streamed from DDR" if spec.home == "stream" else "on chip"
        folding = f"{spec.pe1} x {spec.simd1}; {spec.pe2} x {spec.simd2}"
        products = "in DSP slices" if spec.products == "dsp" else "in logic"
        lines.append(f"| {spec.name} | {home} | {products} | {folding} | {len(spec.experts)} | {cycles} |")
    if bits.checks:
        lines += ["", "Checked, or counted by the tools; what is wrong stops a build:", ""]
        lines += [f"- {name.replace('_', ' ')}: {_check(found)}" for name, found in bits.checks.items()]
    return "\n".join(lines) + "\n"


def _timing(bits: Bitstream) -> str:
    if bits.fmax_mhz is None:
        return "none, a simulated design has none"
    estimate = " (an estimate: its models of delays are incomplete)" if bits.toolchain == "open" else ""
    return f"up to {bits.fmax_mhz:g} MHz by the tools' analysis{estimate}, clocked at {bits.clock_mhz:g} MHz"


def _check(found: Any) -> str:
    match found:
        case Mapping():
            return ", ".join(f"{name.replace('_', ' ')} {_check(value)}" for name, value in found.items())
        case [int(used), int(there)]:
            return f"{used} of {there}"
        case list():
            return ", ".join(map(str, found)) or "none"
        case _:
            return str(found)
