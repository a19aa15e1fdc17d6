"""The agent's commands on one bundle. Each takes the fields of a request and returns those of the reply."""

import base64
import binascii
import importlib
import importlib.metadata
import io
import os
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.board.agent.conditions import conditions
from wattbit.board.agent.generate import Generator
from wattbit.board.agent.logic import Logic, load_logic
from wattbit.board.agent.manifest import verify
from wattbit.board.agent.part import board_part, check_part
from wattbit.board.agent.power import PowerModel
from wattbit.board.agent.sensors import hwmon_sensors, open_source
from wattbit.board.agent.timeline import MeasuredTimeline, PacedTimeline, SimulatedTimeline, Timeline, Work
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId
from wattbit.shell import HEADER_BYTES

PROTOCOL = 2
SEED = 1
REPEATS, LEAST_S = 5, 0.2  # of the cores' passes that are timed

Reply = dict[str, Any]


def encode_array(array: NDArray[Any]) -> str:
    """An array as base64 of its npy file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def decode_array(text: str) -> NDArray[Any]:
    """The array of `encode_array`; WattbitError when the text is none."""
    try:
        array: NDArray[Any] = np.load(io.BytesIO(base64.b64decode(text, validate=True)), allow_pickle=False)
    except (binascii.Error, ValueError, EOFError, TypeError) as error:
        raise WattbitError(f"not a base64 npy array: {error}") from None
    return array


class Session:
    """What the agent knows between requests."""

    def __init__(self, bundle: Path, loader: Callable[[Path, dict[str, Any]], Logic] = load_logic) -> None:
        self.bundle = bundle
        self._loader = loader
        self._manifest: dict[str, Any] | None = None
        self._logic: Logic | None = None
        self._timeline: Timeline | None = None
        self._kernels: Any = None
        self._works: dict[str, tuple[Work, int]] = {}
        self._generator: Generator | None = None
        self.ended = False

    @property
    def manifest(self) -> dict[str, Any]:
        if self._manifest is None:
            raise WattbitError("nothing is loaded; send load first")
        return self._manifest

    @property
    def _virtual(self) -> bool:
        return bool(self.manifest["toolchain"] == "virtual")

    def hello(self) -> Reply:
        """Versions and what the board offers, before anything is loaded."""
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pynq": _version("pynq"),
            "machine": platform.machine(),
            "board": _board_name(),
            "part": board_part(),
            "sensors": sorted(hwmon_sensors()),
        }

    def clock(self) -> Reply:
        """The clock that windows and samples go by."""
        return {"time_s": time.monotonic()}

    def load(self) -> Reply:
        """Verify the bundle and load its design; it is refused when it is for another part than the board's."""
        manifest = verify(self.bundle)
        check_part(manifest, board_part())
        arm = manifest["arm"]
        if arm is not None and self._kernels is None:
            self._kernels = importlib.import_module(arm["module"]).Kernels(self.bundle / arm["folder"])
        logic = None if manifest["toolchain"] == "none" else self._loader(self.bundle, manifest)
        self._manifest, self._logic = manifest, logic
        self._works.clear()
        return {
            "bundle": manifest["digest"],
            "design": manifest["design"]["digest"],
            "clock_mhz": logic and logic.clock_mhz,
            "engines": logic.driver.engines if logic else 0,
        }

    def run(self, engine: str = "fpga", experts: list[str] | None = None, x: str | None = None) -> Reply:
        """Outputs `y` of `x` (npy), with an expert's name for each row; without them, of the bundle's own vectors.

        `rows` says which rows of the bundle's vectors they are: those whose expert is on that engine. `wall_s` is the
        time of the accelerator's launches with what surrounds them, and of the cores' passes after a first one, which
        finds nothing in the caches, the median; None on a virtual board.
        """
        _check_engine(engine)
        given = _given(experts, x)
        rows, names, vectors = (np.arange(len(given[1])), *given) if given else self._own_vectors(engine)
        if engine == "fpga":
            start_s = time.monotonic()
            self._works.pop(engine, None)  # the driver's buffers are about to hold other vectors
            work = self._work_of(names, vectors, engine)
            cycles = work.launch()
            outputs = np.empty_like(vectors)
            for slot, mine in enumerate(_by_layer(names)):
                outputs[mine] = self._loaded().driver.results(slot)
            if not given:
                self._works[engine] = replace(work, cycles=cycles), len(names)
            wall_s = None if self._virtual else time.monotonic() - start_s
        else:
            outputs, cycles = self._forward(names, vectors), None
            wall_s = None if self._virtual else self._warm_s(names, vectors)
        return {"rows": rows.tolist(), "y": encode_array(outputs), "cycles": cycles, "wall_s": wall_s}

    def latency(self, launches: int, seconds: float, engine: str = "fpga") -> Reply:
        """Launches of one token in one layer each, its top_k experts: cycles and wall time of every launch.

        It ends after `launches` of them, or after `seconds` of wall time. Which vectors go together is random with a
        fixed seed.
        """
        _check_engine(engine)
        self._works.pop(engine, None)
        _, names, vectors = self._own_vectors(engine)
        layers = _by_layer(names)
        rng, top_k = np.random.default_rng(SEED), self.manifest["model"]["top_k"]
        cycles: list[int | None] = []
        walls_s: list[float] = []
        begin_s = time.monotonic()
        while len(cycles) < launches and time.monotonic() - begin_s < seconds:
            rows = rng.choice(layers[len(cycles) % len(layers)], top_k)
            work = self._work_of([names[row] for row in rows], vectors[rows], engine)
            start_s = time.perf_counter()
            cycles.append(work.launch())
            walls_s.append(time.perf_counter() - start_s)
        return {
            "cycles": cycles if engine == "fpga" else None,
            "wall_s": None if self._virtual else walls_s,
            "packets": top_k,
        }

    def generate(
        self,
        count: int,
        prompt: list[int] | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        seed: int = 0,
        on_cores: list[str] | None = None,
    ) -> Reply:
        """Up to `count` tokens that follow the prompt, or without one those given last.

        on_cores: experts that run on the cores although they have an engine, from this prompt on.
        """
        if self._generator is None:
            self._generator = Generator(self.bundle, self.manifest, self._on_fpga)
        start_s = time.monotonic()
        if prompt is not None:
            self._generator.begin(prompt, temperature, top_k, seed, on_cores or ())
        tokens = self._generator.more(count)
        return {"tokens": tokens, "wall_s": None if self._virtual else time.monotonic() - start_s}

    def idle(self, seconds: float) -> Reply:
        """An idle window, with the board's temperature and clocks after it."""
        return vars(self._power().idle(seconds)) | {"conditions": conditions()}

    def active(
        self, seconds: float, engine: str = "fpga", experts: list[str] | None = None, x: str | None = None
    ) -> Reply:
        """A window in which the bundle's vectors run again and again on one engine; `packets` each time.

        With `x` (npy) and an expert's name for each row these run in their place.
        """
        _check_engine(engine)
        timeline = self._power()
        given = _given(experts, x)
        if given:
            self._works.pop(engine, None)  # the driver's buffers are about to hold other vectors
            work, packets = self._work_of(*given, engine), len(given[0])
        else:
            if engine not in self._works:
                self._works[engine] = self._work(engine)
            work, packets = self._works[engine]
        window = timeline.active(work, seconds)
        if engine in self._works and window.cycles is not None:
            self._works[engine] = replace(work, cycles=window.cycles // window.launches), packets
        return vars(window) | {"packets": packets, "conditions": conditions()}

    def power(self) -> Reply:
        """The samples since the last call."""
        timeline = self._power()
        return {"samples": timeline.samples(), "rail": timeline.rail, "provenance": timeline.provenance}

    def memory(self) -> Reply:
        """The most memory that the agent has taken; an emulator's is not the board's."""
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"agent_peak_bytes": None if self._virtual else peak_bytes}

    def quit(self) -> Reply:
        """End the session."""
        if self._timeline:
            self._timeline.close()
        if self._generator:
            self._generator.close()
        self.ended = True
        return {}

    def _loaded(self) -> Logic:
        if self._logic is None:
            raise WattbitError("nothing is loaded; send load first")
        return self._logic

    def _power(self) -> Timeline:
        if self._timeline is None:
            settings = self.manifest["power"]
            if settings["source"] == "simulated":
                self._timeline = SimulatedTimeline(PowerModel(), self._loaded().clock_mhz, settings["rail"])
            elif settings["source"] in ("external", "none"):
                self._timeline = MeasuredTimeline(None)
            elif self._virtual:
                self._timeline = PacedTimeline(open_source(settings), self._loaded().clock_mhz)
            else:
                self._timeline = MeasuredTimeline(open_source(settings))
        return self._timeline

    def _on_fpga(self, names: list[str], x: NDArray[np.int8]) -> NDArray[np.int8]:
        """Outputs [N, D] of the loaded design."""
        self._works.pop("fpga", None)  # the driver's buffers are about to hold other vectors
        driver = self._loaded().driver
        driver.load(*self._places(names), x)
        self._launch()
        return driver.results()

    def _work(self, engine: str) -> tuple[Work, int]:
        """The bundle's own vectors on an engine, and how many they are."""
        _, names, vectors = self._own_vectors(engine)
        return self._work_of(names, vectors, engine), len(names)

    def _work_of(self, names: list[str], vectors: NDArray[np.int8], engine: str) -> Work:
        """Vectors for these experts, put where their launches read them: one a layer, as a model goes through them."""

        def forward() -> None:
            self._forward(names, vectors)

        def launch() -> int:
            return sum(self._launch(slot) for slot in range(len(layers)))

        if engine != "fpga":
            return self._described(forward, names)
        layers, streamed_bits = _by_layer(names), 0
        for slot, mine in enumerate(layers):
            places = self._places([names[row] for row in mine])
            self._loaded().driver.load(*places, vectors[mine], slot)
            streamed_bits += self._loaded().driver.streamed_bits(*places)
        return self._described(launch, names, streamed_bits)

    def _launch(self, slot: int = 0) -> int:
        """Launch what the driver has loaded. A design that hangs or errs is loaded again, which resets it."""
        try:
            return self._loaded().driver.launch(slot)
        except WattbitError as error:
            self.load()
            raise WattbitError(f"{error} (done: the design was loaded again)") from None

    def _described(self, launch: Callable[[], int | None], names: list[str], streamed_bits: int = 0) -> Work:
        """A launch with what it multiplies and moves: packets in, results out, and the weights that are streamed."""
        moved_bits = 8 * len(names) * (HEADER_BYTES + 2 * int(self.manifest["model"]["d_model"]))
        return Work(launch, self._macs(names), moved_bits + streamed_bits)

    def _own_vectors(self, engine: str) -> tuple[NDArray[np.int64], list[str], NDArray[np.int8]]:
        """Rows, experts' names and inputs of the bundle's vectors that run on an engine."""
        with np.load(self.bundle / self.manifest["vectors"], allow_pickle=False) as archive:
            pairs = zip(archive["layer"], archive["expert"], strict=True)
            names = [f"L{layer}E{expert}" for layer, expert in pairs]
            x = archive["x"]
        rows = [i for i, name in enumerate(names) if engine == "arm" or self._expert(name)["engine"] is not None]
        if not rows:
            raise WattbitError(f"no expert of the bundle is on {engine}; allocate one there")
        return np.array(rows, np.int64), [names[row] for row in rows], x[rows]

    def _expert(self, name: str) -> dict[str, Any]:
        if name not in self.manifest["experts"]:
            raise WattbitError(f"the bundle has no expert {name}; it belongs to another model")
        record: dict[str, Any] = self.manifest["experts"][name]
        return record

    def _places(self, names: list[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        records = [self._expert(name) for name in names]
        for name, record in zip(names, records, strict=True):
            if record["engine"] is None:
                raise WattbitError(f"{name} has no FPGA engine; run it on arm")
        engines = np.array([record["engine"] for record in records], np.int64)
        return engines, np.array([record["set"] for record in records], np.int64)

    def _macs(self, names: list[str]) -> dict[tuple[int, int], int]:
        shape = self.manifest["model"]
        counts = Counter(tuple(self._expert(name)["bits"]) for name in names)
        return {(bits[0], bits[1]): n * 2 * shape["d_model"] * shape["d_hidden"] for bits, n in counts.items()}

    def _forward(self, names: list[str], x: NDArray[np.int8]) -> NDArray[np.int8]:
        """Outputs [N, D] of the ARM kernels, expert by expert."""
        if self._kernels is None:
            raise WattbitError("the bundle has no ARM kernels; build them for this core")
        outputs = np.empty_like(x)
        for name in sorted(set(names)):
            rows = [i for i, other in enumerate(names) if other == name]
            outputs[rows] = self._kernels.forward(ExpertId.parse(name), x[rows])
        return outputs

    def _warm_s(self, names: list[str], x: NDArray[np.int8]) -> float:
        """Median seconds of passes of the ARM kernels, after one that was not timed."""
        walls_s: list[float] = []
        while len(walls_s) < REPEATS or sum(walls_s) < LEAST_S:
            start_s = time.monotonic()
            self._forward(names, x)
            walls_s.append(time.monotonic() - start_s)
        return median(walls_s)


def _given(experts: list[str] | None, x: str | None) -> tuple[list[str], NDArray[np.int8]] | None:
    """A request's own experts and their inputs [N, D], or None where it names neither."""
    if experts is None and x is None:
        return None
    if not experts or x is None:
        raise WattbitError("experts and x go together, with an expert's name for each row of x")
    vectors = decode_array(x)
    if vectors.dtype != np.int8 or vectors.ndim != 2 or len(vectors) != len(experts):
        found = f"{vectors.dtype} {list(vectors.shape)}"
        raise WattbitError(f"{len(experts)} experts need int8 inputs with a row for each, not {found}")
    return experts, vectors


def _by_layer(names: list[str]) -> list[list[int]]:
    """The rows of each layer's experts, first layer first."""
    layers: dict[int, list[int]] = {}
    for row, name in enumerate(names):
        layers.setdefault(ExpertId.parse(name).layer, []).append(row)
    return [layers[layer] for layer in sorted(layers)]


def _check_engine(engine: str) -> None:
    if engine not in ("fpga", "arm"):
        raise WattbitError(f"engine must be fpga or arm, not {engine}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _board_name() -> str:
    model = Path("/proc/device-tree/model")
    return model.read_text().strip("\0\n") if model.is_file() else f"{platform.node()} ({sys.platform})"
