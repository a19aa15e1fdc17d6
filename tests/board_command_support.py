"""A run put together from stand-ins of its stages, and `wattbit board` on it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result

from tests.board_stub import MINE
from tests.hls_shell_support import stub
from wattbit.arith import ExpertInts
from wattbit.cli import main
from wattbit.files import read_json, write_json
from wattbit.hls.planner import plan
from wattbit.hls.shell import build_shell
from wattbit.pipeline import PIPELINE, model_config, target, workload
from wattbit.plan import Allocation, ExpertId, ExpertStats, Precision
from wattbit.presets import run_config
from wattbit.run import Run

DIGEST = "0123456789abcdef"
RESOURCES = {"lut": 100, "ff": 200, "dsp": 4, "bram18": 2, "tool": "test"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run for pynq-z2 whose stages are done."""
    monkeypatch.chdir(tmp_path)
    return make_run(Path("runs"))


def make_run(root: Path, board: str = "pynq-z2") -> Run:
    run = Run.create(root, run_config("tiny", None, board, 0))
    shape = model_config(run).shape
    ids = [ExpertId(layer, expert) for layer in range(2) for expert in range(4)]
    allocation = Allocation.of({e: (4, 8)[e.expert % 2] for e in ids})
    write_json(run.path("cotrain", "allocation.json"), allocation.to_json())
    stats = [ExpertStats(e, 0.25, 0.25, 1.0, 0.0, 1.0, 0.0, ((4, 0.1),), 100) for e in ids]
    write_json(run.path("stats", "stats.json"), {"experts": [one.to_json() for one in stats]})
    node = onnx.helper.make_node("Sigmoid", ["x"], ["y"], name="gate")
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "no expert", tensors[:1], tensors[1:]))
    rng = np.random.default_rng(0)
    for e in ids:
        run.path("export").mkdir(exist_ok=True)
        onnx.save(model, str(run.path("export", f"expert_{e}.onnx")))
        w1 = rng.integers(-7, 8, (shape.d_hidden, shape.d_model)).astype(np.int8)
        m1, m2 = np.full(shape.d_hidden, 99, np.int32), np.full(shape.d_model, 99, np.int32)
        ints = ExpertInts(e, Precision((4, 8)[e.expert % 2]), w1, w1.T.copy(), m1, m2, 12, 12, -4, -4, -5)
        ints.save(run.path("export", f"{e}.npz"))
    x = rng.integers(-8, 8, (8, shape.d_model)).astype(np.int8)
    layer, expert = np.array([(e.layer, e.expert) for e in ids]).T
    np.savez(run.path("export", "vectors.npz"), layer=layer, expert=expert, x=x, y=x)
    write_json(run.path("export", "export.json"), {"model": {"top_k": 2}})
    make_design(run, run.path("build", "hls"))
    write_json(run.path("build", "arm", "kernels.json"), {"core": target(run).core})
    for name in PIPELINE.stages:
        if name not in ("deploy", "bench", "controls", "report"):
            record = {"key": PIPELINE.key(name, run), "files": PIPELINE.files(name, run), "result": {}}
            write_json(run.path("stages", f"{name}.json"), record)
    return run


def make_design(run: Run, folder: Path) -> dict[str, Any]:
    """What the stage `build` leaves, of engines that are stubs."""
    allocation = Allocation.from_json(read_json(run.path("cotrain", "allocation.json")))
    planned = plan(allocation, model_config(run).shape, target(run), workload(run))
    engines = [stub(folder / "engines", bits, 8, 8, d_model=16) for bits in (4, 8)]
    build_shell(engines, 16, DIGEST, folder / "shell")
    record = {
        "digest": DIGEST,
        "plan": planned.to_json(),
        "engines": [{"resources": RESOURCES} for _ in planned.classes],
        "accelerators": {},
        "images": [],
        "simulation": {"vectors": 8, "cycles": 800},
    }
    write_json(folder / "build.json", record)
    return record


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["board", *arguments])


def result_of(done: Result) -> Mapping[str, Any]:
    assert done.exit_code == 0, done.output
    result: Mapping[str, Any] = json.loads(done.stdout)
    return result


BOARD = (
    MINE
    + """part = "{part}"
clock_mhz = {clock_mhz}
lut = {lut}
ff = 100000
dsp = 200
bram18 = 200
memory_ports = 2

[ssh]
host = "mine"
"""
)


def board_file(folder: Path, part: str = "xczu2cg-sbva484-1-e", lut: int = 100000, clock_mhz: float = 125.0) -> str:
    path = folder / "mine.toml"
    path.write_text(BOARD.format(part=part, lut=lut, clock_mhz=clock_mhz))
    return str(path)


def refused(done: Result) -> str:
    assert done.exit_code == 1 and done.stdout == "", done.output
    last = done.stderr.splitlines()[-1]
    assert last.startswith("wattbit: ") and "Traceback" not in done.stderr
    return last
