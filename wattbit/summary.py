"""What a stage says on the terminal once it has ended: its figures in a few lines, each with how it is known."""

from collections.abc import Mapping
from math import expm1
from statistics import fmean
from typing import Any

from wattbit.report import significant


def perplexity(value: float) -> str:
    return f"float model: validation perplexity {value:.2f} (measured)"


def searched(result: Mapping[str, Any], tokens: int) -> str:
    """A line a method of what search.json holds, means over its outcomes. tokens: of the workload that was priced."""
    lines = []
    for name, method in result["methods"].items():
        costs = [outcome["cost"] for outcome in method["outcomes"]]
        rise = expm1(fmean(outcome["damage"] for outcome in method["outcomes"]))
        ms = fmean(cost["latency_s"] for cost in costs) / tokens * 1e3
        lines.append(
            f"  {name:<9} {method['mean_bits']:.2f} bits, perplexity {rise:+.2%} as predicted, "
            f"{significant(ms)} ms/token ({costs[0]['provenance']})"
        )
    return "\n".join([*lines, *_left_out(result["left_out"])])


def cotrained(result: Mapping[str, Any]) -> str:
    """A line a method of what `policy.cotrain` returns."""
    lines = []
    for name, method in result["methods"].items():
        before, after = (method[f"perplexity_{when}"]["mean"] for when in ("before", "after"))
        lines.append(
            f"  {name:<9} {method['mean_bits']:.2f} bits, perplexity {before:.2f}, fine-tuned {after:.2f} (measured)"
        )
    return "\n".join([*lines, *_left_out(result["left_out"])])


def built(simulation: Mapping[str, Any]) -> str:
    """Of the engines' RTL simulation."""
    exact = "bit-exact" if simulation["bit_exact"] else "NOT bit-exact"
    return f"engines: {simulation['vectors']:,} vectors {exact}, {simulation['cycles']:,} cycles (simulated)"


def controlled(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a control."""
    return "\n".join(
        f"  {name:<9} {one['cycles_per_token']:.1f} cycles/token (simulated)" for name, one in found.items()
    )


def _left_out(why: Mapping[str, str]) -> list[str]:
    return [f"  {name:<9} left out: {reason}" for name, reason in why.items()]
