"""The export: files that run as PyTorch does, appear whole, and are not redone."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper

from tests.models_support import TINY_MODEL
from wattbit import arith
from wattbit.arith import ExpertInts
from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file
from wattbit.models import export as export_module
from wattbit.models.export import export, run_qonnx
from wattbit.models.learner import MoELearner
from wattbit.plan import Allocation, ExpertId, Placement, Precision

pytest_plugins = ["tests.models_support"]

EXPERTS = TINY_MODEL.expert_ids
PRECISIONS = [Precision(b, a) for b, a in ((2, 8), (3, 8), (4, 8), (6, 8), (8, 8), (5, 8), (7, 4), (4, 4))]
ALLOCATION = Allocation(tuple(Placement(e, "fpga", p) for e, p in zip(EXPERTS, PRECISIONS, strict=True)))


@pytest.fixture(scope="module")
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


@pytest.fixture(scope="module")
def exported(learner: MoELearner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    export(learner, ALLOCATION, out)
    return out


def test_vectors_are_what_brevitas_integers_and_qonnx_return(exported: Path):
    with np.load(exported / "vectors.npz", allow_pickle=False) as vectors:
        layer, expert, x, y = (vectors[name] for name in ("layer", "expert", "x", "y"))
    assert (layer.dtype, expert.dtype, x.dtype, y.dtype) == (np.int32, np.int32, np.int8, np.int8)
    assert x.shape == y.shape == (len(layer), TINY_MODEL.d_model)
    for identity in EXPERTS:
        mine = (layer == identity.layer) & (expert == identity.expert)
        assert mine.any(), f"{identity} has no vector"
        ints = ExpertInts.load(exported / f"{identity}.npz")
        assert ints.precision == ALLOCATION.precision(identity)
        np.testing.assert_array_equal(arith.forward(ints, x[mine]), y[mine])
        graph = ModelWrapper(str(exported / f"expert_{identity}.onnx"))
        np.testing.assert_array_equal(run_qonnx(graph, ints, x[mine][-2:]), y[mine][-2:])


def test_the_record_names_every_file(exported: Path):
    record = read_json(exported / "export.json")
    assert record["allocation"] == ALLOCATION.digest
    assert record["precision"] == {str(e): str(ALLOCATION.precision(e)) for e in EXPERTS}
    assert record["sha256"] == {
        path.name: sha256_file(path) for path in exported.iterdir() if path.name != "export.json"
    }


def test_a_graph_is_quantizers_around_two_products(exported: Path):
    """The form that FINN's ConvertQONNXtoFINN takes: one float input and output [1, D], constant weights."""
    graph = ModelWrapper(str(exported / "expert_L0E0.onnx"))
    operators = [node.op_type for node in graph.graph.node]
    assert sorted(operators) == ["Add", "Add", "MatMul", "MatMul", "Quant", "Quant", "Quant", "Quant", "Quant", "Relu"]
    (source,), (target,) = graph.graph.input, graph.graph.output
    assert graph.get_tensor_shape(source.name) == graph.get_tensor_shape(target.name) == [1, TINY_MODEL.d_model]


def test_the_backbone_with_experts_between_is_the_whole_model(learner: MoELearner, exported: Path):
    """Layer by layer as a runner on a board would: ask for a layer's inputs, run its experts, go on. Any length."""
    session = onnxruntime.InferenceSession(str(exported / "backbone.onnx"))
    tokens = learner.samples.valid[0, :20]
    K, D = TINY_MODEL.top_k, TINY_MODEL.d_model
    feed = {"tokens": tokens[None].numpy()} | {
        f"y{i}": np.zeros((20, K, D), dtype=np.float32) for i in range(TINY_MODEL.layers)
    }
    for i, block in enumerate(learner.network.layers):
        x, chosen, gates = session.run([f"x{i}", f"experts{i}", f"gates{i}"], feed)
        np.testing.assert_allclose(gates.sum(axis=1), 1, rtol=1e-5)
        w1, w2 = block.mixture.w1.detach().numpy()[chosen], block.mixture.w2.detach().numpy()[chosen]  # [S, K, H, D]
        feed[f"y{i}"] = np.einsum("skdh,skh->skd", w2, np.maximum(np.einsum("skhd,sd->skh", w1, x), 0))
    (logits,) = session.run(["logits"], feed)
    with torch.no_grad():
        np.testing.assert_allclose(logits, learner.network(tokens[None])[0].numpy(), atol=1e-3)


def test_a_second_export_redoes_only_what_is_missing(
    learner: MoELearner, exported: Path, monkeypatch: pytest.MonkeyPatch
):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    (exported / "expert_L0E1.onnx").unlink()
    (exported / "L1E0.npz").write_bytes(b"damaged")
    calls = []
    real = export_module.export_qonnx

    def counted(module: object, *args: object, **kwargs: object) -> object:
        calls.append(module.expert)  # type: ignore[attr-defined]
        return real(module, *args, **kwargs)

    monkeypatch.setattr(export_module, "export_qonnx", counted)
    export(learner, ALLOCATION, exported)
    assert calls == [ExpertId(0, 1), ExpertId(1, 0)]
    after = {path.name: path.read_bytes() for path in exported.iterdir()}
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name.endswith(".npz"))


def test_a_graph_that_differs_is_refused_and_leaves_nothing(
    learner: MoELearner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(export_module, "run_qonnx", lambda graph, ints, x: x)
    with pytest.raises(WattbitError, match=r"L0E0 at w2a8: QONNX differs from Brevitas"):
        export(learner, ALLOCATION, tmp_path)
    assert list(tmp_path.iterdir()) == []
