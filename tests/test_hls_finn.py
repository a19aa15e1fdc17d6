"""FINN == arithmetic: an exported expert's graph, thresholds and memories are what the engine holds."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx as onnx_library
import pytest
import torch

from tests.hls_engine_support import PART, engine_class
from wattbit.arith import ExpertInts, requant
from wattbit.errors import WattbitError
from wattbit.hls import rtllib
from wattbit.hls.engine import build_engine
from wattbit.hls.finn_flow import lower, structure, thresholds
from wattbit.models.expert import BrevitasExpert
from wattbit.models.export import export_expert
from wattbit.models.scales import calibrate
from wattbit.plan import ExpertId, Precision

D, H = 16, 32


def export(out: Path, expert: ExpertId, precision: Precision) -> tuple[Path, ExpertInts]:
    """A Brevitas expert with random weights as QONNX file and integers."""
    generator = torch.Generator().manual_seed(expert.expert)
    w1, w2 = torch.randn(H, D, generator=generator) / 4, torch.randn(D, H, generator=generator) / 4
    x = torch.randn(64, D, generator=generator)
    scales = calibrate(w1.numpy(), w2.numpy(), x.numpy(), precision)
    module = BrevitasExpert(expert, w1, w2, scales)
    export_expert(module, module.quantize(x[:4]), out)
    return out / f"expert_{expert}.onnx", ExpertInts.load(out / f"{expert}.npz")


@pytest.mark.parametrize("precision", [Precision(2, 8), Precision(8, 8), Precision(4, 4)], ids=str)
def test_finn_lowers_an_expert_to_the_engine(tmp_path: Path, precision: Precision) -> None:
    """`build_engine` compares FINN's graph, widths and weight memory with its own, and runs FINN's execution."""
    files = {ExpertId(0, i): export(tmp_path, ExpertId(0, i), precision) for i in range(2)}
    onnx, ints = ({expert: file[i] for expert, file in files.items()} for i in (0, 1))
    engine = build_engine(onnx, ints, engine_class(precision, 2, 4, 2), tmp_path / "rtl", PART)
    assert engine.module == f"engine_{precision}"
    assert all(path.is_file() for path in (*engine.sources, *engine.memories))


def test_other_integers_than_the_graph_are_refused(tmp_path: Path) -> None:
    precision = Precision(4, 8)
    onnx, ints = export(tmp_path, ExpertId(0, 0), precision)
    spec = engine_class(precision, 1, 4, 2)
    with pytest.raises(WattbitError, match="thresholds are not the requantisation of the exported integers"):
        lower(onnx, replace(ints, m2=ints.m2 + 1), spec, PART)
    with pytest.raises(WattbitError, match="L0E0: FINN's hardware graph differs from the exported integers"):
        lower(onnx, replace(ints, w1=-ints.w1), spec, PART)


def test_experts_of_another_graph_are_refused(tmp_path: Path) -> None:
    precision, ids = Precision(4, 8), (ExpertId(0, 0), ExpertId(0, 1))
    onnx, ints = {}, {}
    for expert in ids:
        onnx[expert], ints[expert] = export(tmp_path, expert, precision)
    strange, _ = export(tmp_path / "strange", ids[1], Precision(4, 4))
    assert structure(onnx[ids[0]]) == structure(onnx[ids[1]])
    spec = engine_class(precision, 2, 4, 2)
    with pytest.raises(WattbitError, match=r"expert_L0E1.onnx is another graph than expert_L0E0.onnx"):
        build_engine(onnx | {ids[1]: strange}, ints, spec, tmp_path / "rtl", PART)
    with pytest.raises(WattbitError, match="L0E1 of engine_w4a8 is not exported"):
        build_engine({ids[0]: onnx[ids[0]]}, ints, spec, tmp_path / "rtl", PART)


def test_an_operator_without_rtl_form_is_named_with_its_node(tmp_path: Path) -> None:
    precision, expert = Precision(4, 8), ExpertId(0, 0)
    path, ints = export(tmp_path, expert, precision)
    model = onnx_library.load(str(path))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, name = "Sigmoid", node.name
    onnx_library.save(model, str(path))
    message = rf"expert_L0E0\.onnx: node {name} is a Sigmoid, which has no RTL form; .*Add, MatMul, Quant, Relu: place"
    with pytest.raises(WattbitError, match=message):
        build_engine({expert: path}, {expert: ints}, engine_class(precision, 1, 4, 2), tmp_path / "rtl", PART)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WattbitError, match=r"expert_L0E0.onnx is no ONNX model .*run `wattbit export` again"):
        structure(path)


def test_thresholds_are_where_the_requantisation_steps() -> None:
    multiplier = np.array([1, 3, 180, 65535], dtype=np.int32)
    for shift, lo, hi in ((1, 0, 15), (12, -128, 127)):
        steps = thresholds(multiplier, shift, lo, hi).T  # [hi - lo, C]
        levels = np.arange(lo + 1, hi + 1)[:, None]
        assert np.all(requant(steps, multiplier, shift, lo, hi) >= levels)
        assert np.all(requant(steps - 1, multiplier, shift, lo, hi) < levels)


def test_the_library_is_patched_once(tmp_path: Path) -> None:
    sources = rtllib.patched(tmp_path)
    before = [path.stat().st_mtime_ns for path in sources]
    assert rtllib.patched(tmp_path) == sources
    assert [path.stat().st_mtime_ns for path in sources] == before
    assert [path.name for path in tmp_path.iterdir()] == [sources[0].parent.name]


def test_a_patch_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = rtllib.Patch("mvu/mvu.sv", "no such text", "")
    monkeypatch.setattr(rtllib, "PATCHES", (wrong,))
    with pytest.raises(WattbitError, match=r"the patch 'no such text' of mvu/mvu.sv fits 0 times instead of 1"):
        rtllib.patched(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_finn_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WattbitError, match="finn-plus is not installed"):
        rtllib.patched(tmp_path)
