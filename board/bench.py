"""The benchmark: a bundle's vectors through the board's agent, compared bit by bit, then timed and weighed.

On a virtual board cycles come from the simulated accelerator and energy from the modelled rail, both `simulated`; its
windows pass on a virtual clock and stand for repetitions of one simulated launch (see agent/timeline.py). The time of
emulated ARM cores means nothing, so there is none.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import load_vectors
from wattbit.board.agent.manifest import verify
from wattbit.board.agent.session import decode_array
from wattbit.board.client import AgentClient, Launcher
from wattbit.board.deploy import Board, deploy
from wattbit.board.energy import Energy, evaluate
from wattbit.errors import WattbitError
from wattbit.files import write_json
from wattbit.plan import Measurement, PowerSample, Provenance, Window
from wattbit.progress import Progress, silent

PAIRS = 6
WINDOW_S = 12.0
SETTLE_S = 10.0
NO_ARM_TIME = "emulated ARM cores have no time of their own; measure on a real board"


class Connection(Board, Launcher, Protocol):
    """What the benchmark needs of `wattbit.board.ssh.Connection`."""


def bench(
    bundle: Path, connection: Connection, out: Path, progress: Progress = silent, vectors: Path | None = None
) -> dict[str, Any]:
    """Run a bundle on its board; write `measurement.json` and `bench.json` to `out` and return the latter.

    The bundle is deployed if it is not there any more.
    vectors: inputs with their expected outputs; export/vectors.npz of the bundle's run folder when not given.
    Raises WattbitError when the bundle belongs to other vectors or an output differs in any bit.
    """
    manifest = verify(bundle)
    expected = _Expected(vectors or bundle.parent / "export" / "vectors.npz", bundle / manifest["vectors"])
    folder = deploy(bundle, connection)
    steps = 4 + PAIRS
    progress("bench: start the agent", 0, steps)
    with AgentClient(connection, folder) as agent:
        hello = agent.request("hello")
        loaded = agent.request("load")
        progress("bench: outputs of the FPGA", 1, steps)
        fpga = agent.request("run", engine="fpga")
        expected.check("fpga", fpga, manifest)
        progress("bench: outputs of the ARM cores", 2, steps)
        arm = agent.request("run", engine="arm") if manifest["arm"] else None
        if arm:
            expected.check("arm", arm, manifest)
        progress("bench: energy", 3, steps)
        measurement, launches = _weigh(agent, manifest, lambda pair: progress("bench: energy", 3 + pair, steps))
        agent.request("quit")
    result = _result(manifest, hello | loaded, fpga, arm, measurement)
    result["energy"] |= launches
    write_json(out / "measurement.json", measurement.to_json())
    write_json(out / "bench.json", result)
    progress("bench", steps, steps)
    return result


class _Expected:
    """The outputs that every engine must give."""

    def __init__(self, vectors: Path, inputs: Path) -> None:
        known = load_vectors(vectors)
        with np.load(inputs, allow_pickle=False) as sent:  # the bundle was verified
            same = all(np.array_equal(known[name], sent[name]) for name in ("layer", "expert", "x"))
        self._names = [f"L{layer}E{expert}" for layer, expert in zip(known["layer"], known["expert"], strict=True)]
        self._y: NDArray[np.int8] = known["y"]
        if not same:
            raise WattbitError(f"{vectors} has other inputs than the bundle; deploy again")

    def check(self, engine: str, reply: dict[str, Any], manifest: dict[str, Any]) -> None:
        """WattbitError unless the agent's reply has every vector of that engine, with the expected integers."""
        experts = manifest["experts"]
        rows = [i for i, name in enumerate(self._names) if engine == "arm" or experts[name]["engine"] is not None]
        if reply["rows"] != rows:
            raise WattbitError(f"{engine} ran {len(reply['rows'])} of {len(rows)} vectors; deploy again")
        found, expected = decode_array(reply["y"]), self._y[reply["rows"]]
        if found.shape != expected.shape or found.dtype != expected.dtype:
            raise WattbitError(f"{engine} gave {found.dtype} {found.shape}, not {expected.dtype} {expected.shape}")
        wrong = (found != expected).any(axis=1)
        if wrong.any():
            counts = Counter(self._names[row] for row, bad in zip(reply["rows"], wrong, strict=True) if bad)
            names = ", ".join(f"{name} ({n})" for name, n in counts.most_common(4))
            raise WattbitError(
                f"{int(wrong.sum())} of {len(wrong)} outputs of {engine} differ from PyTorch's integers: {names}; "
                "build and deploy again"
            )


def _weigh(
    agent: AgentClient, manifest: dict[str, Any], progress: Callable[[int], None]
) -> tuple[Measurement, dict[str, int]]:
    """Idle and active windows in turn with the samples taken in them, and the launches in the active ones.

    `launches_executed` is less than `launches` where one simulated launch stood for its repetitions.
    """
    windows: list[Window] = []
    packets, cycles = 0, 0
    launches = {"launches": 0, "launches_executed": 0}

    def idle(seconds: float) -> None:
        reply = agent.request("idle", seconds=seconds)
        windows.append(Window("idle", reply["start_s"], reply["end_s"]))

    agent.request("idle", seconds=SETTLE_S)
    idle(WINDOW_S)
    for pair in range(PAIRS):
        reply = agent.request("active", seconds=WINDOW_S)
        windows.append(Window("active", reply["start_s"], reply["end_s"]))
        packets += reply["packets"] * reply["launches"]
        cycles += reply["cycles"]
        launches["launches"] += reply["launches"]
        launches["launches_executed"] += reply["executed"]
        idle(WINDOW_S)
        progress(pair + 1)
    power = agent.request("power")
    measurement = Measurement(
        target=manifest["target"]["name"],
        allocation_digest=manifest["allocation_digest"],
        rail=power["rail"],
        provenance=power["provenance"],
        samples=tuple(PowerSample(*sample) for sample in power["samples"]),
        windows=tuple(windows),
        tokens=packets // _packets_per_token(manifest),
        cycles=cycles,
    )
    return measurement, launches


def _packets_per_token(manifest: dict[str, Any]) -> int:
    """A token goes through every MoE layer, there to top_k experts."""
    return int(manifest["model"]["layers"] * manifest["model"]["top_k"])


def _result(
    manifest: dict[str, Any],
    agent: dict[str, Any],
    fpga: dict[str, Any],
    arm: dict[str, Any] | None,
    measurement: Measurement,
) -> dict[str, Any]:
    packets = len(fpga["rows"])
    cycles_per_token = fpga["cycles"] * _packets_per_token(manifest) / packets
    provenance: Provenance = "simulated" if manifest["toolchain"] == "virtual" else "measured"
    return {
        "target": manifest["target"]["name"],
        "toolchain": manifest["toolchain"],
        "bundle": manifest["digest"],
        "allocation_digest": manifest["allocation_digest"],
        "design_digest": manifest["design"]["digest"],
        "bit_exact": True,  # any difference has raised
        "packets": packets,
        "packets_per_token": _packets_per_token(manifest),
        "tokens": packets / _packets_per_token(manifest),
        "fpga": {
            "packets": packets,
            "cycles": fpga["cycles"],
            "clock_mhz": agent["clock_mhz"],
            "cycles_per_token": cycles_per_token,
            "ms_per_token": cycles_per_token / agent["clock_mhz"] * 1e-3,
            "provenance": provenance,
        },
        "arm": arm and _arm(arm, manifest),
        "energy": _energy(evaluate(measurement), measurement),
        "agent": agent,
    }


def _arm(reply: dict[str, Any], manifest: dict[str, Any]) -> dict[str, Any]:
    packets = len(reply["rows"])
    if reply["wall_s"] is None:
        return {"packets": packets, "ms_per_token": None, "reason": NO_ARM_TIME}
    ms_per_token = reply["wall_s"] * 1e3 * _packets_per_token(manifest) / packets
    return {"packets": packets, "ms_per_token": ms_per_token, "provenance": "measured"}


def _energy(energy: Energy, measurement: Measurement) -> dict[str, Any]:
    """The energy of an active window, and of a token: net with half its 95 % interval, and with idle."""
    tokens = measurement.tokens / energy.pairs
    return energy.to_json() | {
        "tokens_per_window": tokens,
        "net_mj_per_token": energy.net_j / tokens * 1e3,
        "net_mj_per_token_half": energy.net_half_j / tokens * 1e3,
        "absolute_mj_per_token": energy.absolute_j / tokens * 1e3,
    }
