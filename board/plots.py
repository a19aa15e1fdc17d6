"""Power over time with the windows marked."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from wattbit.files import atomic
from wattbit.plan import Measurement

COLOURS = {"idle": "#dde6ef", "active": "#f3d9c8"}


def power_over_time(measurements: Sequence[Measurement], path: Path) -> None:
    """One panel a measurement: its samples, and the windows behind them."""
    figure, panels = plt.subplots(len(measurements), 1, figsize=(9, 2.8 * len(measurements)), squeeze=False)
    for panel, measurement in zip(panels[:, 0], measurements, strict=True):
        begin_s = measurement.windows[0].start_s
        named = set()
        for window in measurement.windows:
            label = None if window.kind in named else window.kind
            named.add(window.kind)
            panel.axvspan(
                window.start_s - begin_s, window.end_s - begin_s, color=COLOURS[window.kind], label=label, lw=0
            )
        times_s = [sample.time_s - begin_s for sample in measurement.samples]
        panel.plot(times_s, [sample.power_w for sample in measurement.samples], color="#1f5fa8", linewidth=0.7)
        panel.set_ylabel(f"{measurement.rail}, W ({measurement.provenance})")
        panel.set_xlim(0, measurement.windows[-1].end_s - begin_s)
        panel.legend(loc="upper right", fontsize=8)
    panels[-1, 0].set_xlabel("time on the board's clock, s")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
    plt.close(figure)
