"""The report's pictures: widths over frequency, the reward curve, the accuracy/latency front."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from wattbit.files import atomic
from wattbit.plan import Allocation, ExpertStats

COLOURS = ("#1f5fa8", "#c8501e", "#2f8f4e", "#8a4fb0", "#7a7a7a", "#b8901a", "#3aa0a8")
MARKERS = "osD^vP*X"


def save(figure: Figure, path: Path) -> Path:
    """The figure in a file, which the same data makes the same to the byte."""
    dated = {"Date": None} if path.suffix == ".svg" else None
    with atomic(path) as temporary, plt.rc_context({"svg.hashsalt": "wattbit"}):  # elements' names, else drawn anew
        figure.savefig(temporary, dpi=110, bbox_inches="tight", metadata=dated)
    plt.close(figure)
    return path


def widths(stats: Sequence[ExpertStats], allocations: Mapping[str, Allocation], path: Path) -> Path:
    """Weight width of every expert over its activation frequency, one panel an allocation, one colour a layer."""
    figure, panels = plt.subplots(
        1, len(allocations), figsize=(4.6 * len(allocations), 3.4), squeeze=False, sharey=True
    )
    for panel, (name, allocation) in zip(panels[0], allocations.items(), strict=True):
        for layer in sorted({s.expert.layer for s in stats}):
            chosen = [s for s in stats if s.expert.layer == layer]
            bits = [allocation.precision(s.expert).weight_bits for s in chosen]
            panel.scatter(
                [100 * s.frequency for s in chosen],
                bits,
                label=f"layer {layer}",
                color=COLOURS[layer % len(COLOURS)],
                alpha=0.75,
                edgecolors="white",
                linewidths=0.6,
                s=52,
            )
        panel.set_title(f"{name} (mean {allocation.mean_bits:.2f} bit)")
        panel.set_xlabel("activation frequency within the layer, %")
        panel.set_yticks(range(2, 9))
        panel.set_ylim(1.5, 8.5)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("weight width, bit")
    panels[0][0].legend(frameon=False)
    return save(figure, path)


def rewards(curves: Sequence[Sequence[float]], path: Path) -> Path:
    """Reward over policy updates, one line a seed and their mean."""
    figure, panel = plt.subplots(figsize=(5.4, 3.4))
    for place, curve in enumerate(curves):
        panel.plot(curve, color=COLOURS[0], alpha=0.35, linewidth=1, label="_" * (place > 0) + "one seed")
    shortest = min(len(curve) for curve in curves)
    mean = np.mean([list(curve)[:shortest] for curve in curves], axis=0)
    panel.plot(mean, color=COLOURS[1], linewidth=2, label="mean")
    panel.set_xlabel("policy update")
    panel.set_ylabel("reward (modelled)")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return save(figure, path)


def front(
    points: Mapping[str, tuple[float, float, float]], float_perplexity: float, provenance: str, path: Path
) -> Path:
    """Perplexity and its standard deviation over latency in µs a token: {method: (µs, mean, std)}."""
    figure, panel = plt.subplots(figsize=(5.8, 3.8))
    for place, (name, (latency_us, mean, std)) in enumerate(points.items()):
        colour = COLOURS[place % len(COLOURS)]
        panel.errorbar([latency_us], [mean], yerr=[std], fmt="o", color=colour, capsize=3, label=name)
    panel.axhline(float_perplexity, color="black", linewidth=0.8, linestyle="--", label="float")
    panel.set_xlabel(f"accelerator time a token, µs ({provenance})")
    panel.set_ylabel("validation perplexity")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=8)
    return save(figure, path)


def memory_front(points: Mapping[str, Sequence[tuple[float, float, float | None]]], path: Path) -> Path:
    """Perplexity and its standard deviation, None of one reading, over the experts' megabytes: {method: [(MB, mean,
    std)]}."""
    figure, panel = plt.subplots(figsize=(7.2, 4.6))
    for place, (name, line) in enumerate(points.items()):
        megabytes, mean, std = zip(*sorted(line, key=lambda point: point[0]), strict=True)
        panel.errorbar(
            megabytes,
            mean,
            yerr=[np.nan if one is None else one for one in std],
            label=name,
            color=plt.get_cmap("tab20")(place % 20),
            marker=MARKERS[place % len(MARKERS)],
            capsize=2,
            linewidth=1,
            markersize=5,
        )
    panel.set_xlabel("experts, MB as packed")
    panel.set_ylabel("perplexity")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=7, ncols=2)
    return save(figure, path)


def reasons(stats: Sequence[ExpertStats], allocation: Allocation, path: Path) -> Path:
    """Every expert by layer and place, coloured by width, and its damage at the narrowest width over its tokens."""
    by_expert = {s.expert: s for s in stats}
    layers = sorted({s.expert.layer for s in stats})
    figure, (map_of, scatter) = plt.subplots(1, 2, figsize=(11, 3.8))
    bits = {p.expert: p.precision.weight_bits for p in allocation.placements}
    image = np.array([[bits[e] for e in sorted(bits) if e.layer == layer] for layer in layers])
    shown = map_of.imshow(image, aspect="auto", cmap="viridis", vmin=2, vmax=8)
    map_of.set_xlabel("expert")
    map_of.set_ylabel("layer")
    map_of.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    figure.colorbar(shown, ax=map_of, label="weight width, bit", ticks=range(2, 9))
    for width in sorted(set(bits.values())):
        mine = [by_expert[e] for e in bits if bits[e] == width]
        damage = [s.damage[0][1] for s in mine]
        scatter.scatter([s.tokens for s in mine], damage, label=f"{width} bit", s=24, alpha=0.8)
    scatter.set_xlabel("calibration tokens that it served")
    scatter.set_ylabel(f"damage at {stats[0].damage[0][0]} bits, nats a token")
    scatter.grid(alpha=0.3)
    scatter.legend(frameon=False)
    return save(figure, path)
