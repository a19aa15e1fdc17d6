"""The benchmark: a bundle's vectors through the board's agent, compared bit by bit, then timed and weighed.

On a virtual board cycles come from the simulated accelerator and energy from the modelled rail, both `simulated`; an
active window stands for repetitions of one simulated launch (see agent/timeline.py). The time of emulated ARM cores
means nothing, so there is none.

Every step that is done is in `journal.jsonl` at once. A run that ends early, for whatever reason, is taken up again by
the next one, pair of windows by pair of windows. At the end the folder has

| file | content |
|---|---|
| `bench.json` | the summary: correctness, latency, throughput, energy, memory |
| `raw.json.gz` | every power sample and window, every launch's time, temperatures and clocks |
| `power.png` | power over time with the windows marked |
"""

import gzip
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import load_vectors
from wattbit.board.agent.manifest import verify
from wattbit.board.agent.session import decode_array
from wattbit.board.bundle import NO_LOGIC, engine_of
from wattbit.board.client import AgentClient, Launcher
from wattbit.board.deploy import deploy
from wattbit.board.journal import Journal
from wattbit.board.program import Host
from wattbit.board.summary import Findings, summarise
from wattbit.board.weigh import Weighing
from wattbit.errors import ToolError, WattbitError
from wattbit.files import write_bytes, write_json
from wattbit.progress import Progress, silent

TRIES = 2  # an accelerator that hung was reset by the agent: its step is tried once more
VIRTUAL_LAUNCHES = 24  # each one is simulated


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    window_s: length of each idle and active window. pairs: at least so many, and 5 at that.
    width: the 95 % interval's half over net energy that is enough. budget_s: board time after which energy is what it
    is; on a real board and in the system tier that is real time.
    launches, latency_s: launches to time, and the time after which fewer are enough.
    meter: an external meter's name (see wattbit.board.meters), in place of the board's own sensor.
    """

    window_s: float = 12.0
    pairs: int = 6
    width: float = 0.02
    budget_s: float = 900.0
    launches: int = 1000
    latency_s: float = 10.0
    meter: str | None = None


DEFAULT = Settings()


class Connection(Host, Launcher, Protocol):
    """What the benchmark needs of `wattbit.board.ssh.Connection`."""


def bench(
    bundle: Path,
    connection: Connection,
    out: Path,
    progress: Progress = silent,
    vectors: Path | None = None,
    settings: Settings = DEFAULT,
) -> dict[str, Any]:
    """Run a bundle on its board, or finish what an earlier call began; write the summary to `out` and return it.

    The bundle is deployed if it is not there any more.
    vectors: inputs with their expected outputs; export/vectors.npz of the bundle's run folder when not given.
    Raises WattbitError when the bundle belongs to other vectors, an output differs in any bit, or the board, its agent
    or its sensor is lost; what was measured by then is kept.
    """
    manifest = verify(bundle)
    expected = _Expected(vectors or bundle.parent / "export" / "vectors.npz", bundle / manifest["vectors"])
    key = {"bundle": manifest["digest"], "host": connection.host, "settings": asdict(settings)}
    journal = Journal(out / "journal.jsonl", key)
    steps = 4 + settings.pairs
    folder = deploy(bundle, connection)
    progress("bench: start the agent", 0, steps)
    with AgentClient(connection, folder) as agent:
        about = agent.hello | agent.request("load")
        progress("bench: outputs of the FPGA", 1, steps)
        fpga = None if manifest["toolchain"] == NO_LOGIC else _checked(journal, agent, "fpga", expected, manifest)
        progress("bench: outputs of the ARM cores", 2, steps)
        arm = _checked(journal, agent, "arm", expected, manifest) if manifest["arm"] else None
        progress("bench: latency", 3, steps)
        latency = _latency(journal, agent, manifest, settings)
        weighing = Weighing(journal, agent, manifest, settings)
        weighing.run(lambda pair: progress("bench: energy", 3 + min(pair, settings.pairs), steps))
        about |= agent.request("memory")
        agent.request("quit")
    result = _finish(Findings(manifest, connection.host, about, fpga, arm, latency, weighing), out, journal)
    progress("bench", steps, steps)
    return result


def _finish(findings: Findings, out: Path, journal: Journal) -> dict[str, Any]:
    result = summarise(findings)
    measurements = findings.weighing.measurements()
    raw = {
        "bundle": findings.manifest["digest"],
        "board": findings.host,
        "measurements": [measurement.to_json() for measurement in measurements],
        "entries": [entry for entry in journal.entries if entry["kind"] != "pair"],
        "conditions": [entry["conditions"] for entry in journal.all("pair")],
    }
    write_bytes(out / "raw.json.gz", gzip.compress(json.dumps(raw, allow_nan=False).encode(), mtime=0))
    if measurements:
        from wattbit.board.plots import power_over_time

        power_over_time(measurements, out / "power.png")
    write_json(out / "bench.json", result)
    journal.remove()
    return result


def _checked(
    journal: Journal, agent: AgentClient, engine: str, expected: "_Expected", manifest: dict[str, Any]
) -> dict[str, Any]:
    """What the agent said of all vectors on one engine, without the outputs, which were right."""
    if (entry := journal.find(engine)) is None:
        reply = patient(agent, "run", engine=engine)
        expected.check(engine, reply, manifest)
        entry = journal.add(engine, packets=len(reply["rows"]), cycles=reply["cycles"], wall_s=reply["wall_s"])
    return entry


def _latency(journal: Journal, agent: AgentClient, manifest: dict[str, Any], settings: Settings) -> dict[str, Any]:
    if (entry := journal.find("latency")) is None:
        launches = VIRTUAL_LAUNCHES if manifest["toolchain"] == "virtual" else settings.launches
        reply = patient(agent, "latency", launches=launches, seconds=settings.latency_s, engine=engine_of(manifest))
        entry = journal.add("latency", **reply)
    return entry


def patient(agent: AgentClient, command: str, **fields: Any) -> dict[str, Any]:
    """A request that is made again when the board refuses it once: the agent has reset its accelerator by then."""
    for _ in range(TRIES - 1):
        try:
            return agent.request(command, **fields)
        except ToolError:
            raise
        except WattbitError:
            continue
    return agent.request(command, **fields)


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
