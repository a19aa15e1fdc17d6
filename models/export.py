"""From a learner and an allocation to files: one QONNX graph and one integer file per expert, backbone, vectors.

Every expert's graph is executed and compared with Brevitas and with `wattbit.arith`, integer by integer, before its
files appear; a second call with the same weights and allocation redoes nothing that is there.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brevitas.export import export_qonnx
from numpy.typing import NDArray
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model
from torch import Tensor

from wattbit import arith
from wattbit.arith import ExpertInts, Int8
from wattbit.errors import WattbitError
from wattbit.files import atomic, sha256_file, write_json
from wattbit.models.backbone import check_backbone, export_backbone
from wattbit.models.expert import BrevitasExpert
from wattbit.models.learner import MoELearner
from wattbit.models.portable import export_decoder
from wattbit.models.quant import brevitas_experts
from wattbit.plan import Allocation, ExpertId
from wattbit.progress import Progress, silent

VECTOR_TOKENS = 256  # spread over validation text, so that experts occur as often as they do there
DECODER = "decoder.safetensors"
CHECKED_VECTORS = 6  # of each expert, under QONNX's slow executor; the ends of the input range come on top

Vectors = dict[str, NDArray[Any]]


def export(learner: MoELearner, allocation: Allocation, out: Path, progress: Progress = silent) -> dict[str, Any]:
    """Write `expert_L0E3.onnx` and `L0E3.npz` of every expert, `backbone.onnx`, `decoder.safetensors` (the whole model,
    for the decoder on boards), `vectors.npz` and `export.json` to `out`.

    Returns the content of `export.json`. Raises WattbitError if a graph differs from Brevitas or from the integer
    arithmetic, or the allocation is one of another model.
    """
    experts = learner.config.expert_ids
    modules = _modules(learner, allocation)
    vectors = routed_vectors(learner, modules)
    for done, expert in enumerate(experts):
        progress("export", done, len(experts) + 1)
        export_expert(modules[expert], vectors["x"][_rows_of(vectors, expert)], out)
    with atomic(out / "vectors.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **vectors)
    export_decoder(learner, allocation, out / DECODER)
    export_backbone(learner.network, out / "backbone.onnx")
    difference = check_backbone(learner.network, out / "backbone.onnx", learner.samples.held[0, :-1])
    names = ["backbone.onnx", DECODER, "vectors.npz"]
    names += [name for e in experts for name in (f"expert_{e}.onnx", f"{e}.npz")]
    record = {
        "allocation": allocation.digest,
        "precision": {str(expert): str(allocation.precision(expert)) for expert in experts},
        "model": learner.config.to_json(),
        "vectors": len(vectors["x"]),
        "backbone_difference": difference,
        "sha256": {name: sha256_file(out / name) for name in sorted(names)},
    }
    write_json(out / "export.json", record)  # last: its presence says that the rest is there
    progress("export", len(experts) + 1, len(experts) + 1)
    return record


def integers(learner: MoELearner, allocation: Allocation) -> tuple[dict[ExpertId, ExpertInts], Vectors]:
    """Every expert's integers and the `routed_vectors`, as `export` writes them, without files or QONNX graphs."""
    modules = _modules(learner, allocation)
    return {expert: module.ints() for expert, module in modules.items()}, routed_vectors(learner, modules)


def export_expert(module: BrevitasExpert, x: Int8, out: Path) -> None:
    """Write one expert's QONNX graph (float [1, D] to float [1, D]) and integers, checked on inputs x [n, D]."""
    ints = module.ints()
    path = out / f"{module.expert}.npz"
    if (out / f"expert_{module.expert}.onnx").is_file() and _is_written(path, ints):
        return  # the integers are written last, after the graph was checked against them
    low, high = arith.signed_range(ints.precision.act_bits)
    ends = np.array([[low], [high]], dtype=np.int8).repeat(ints.shape.d_model, axis=1)  # [2, D]
    checked = np.concatenate([x[:CHECKED_VECTORS], ends])
    expected = arith.forward(ints, checked)
    if not np.array_equal(module.forward_ints(checked), expected):
        raise WattbitError(f"{module.expert} at {ints.precision}: Brevitas differs from the integer arithmetic")
    with atomic(out / f"expert_{module.expert}.onnx") as temporary:
        export_qonnx(module, torch.zeros(1, ints.shape.d_model), export_path=str(temporary), dynamo=False)
        graph = cleanup_model(ModelWrapper(str(temporary)))
        if not np.array_equal(run_qonnx(graph, ints, checked), expected):
            raise WattbitError(f"{module.expert} at {ints.precision}: QONNX differs from Brevitas")
        graph.save(str(temporary))
    ints.save(path)


def run_qonnx(graph: ModelWrapper, ints: ExpertInts, x: Int8) -> Int8:
    """Integer outputs [n, D] of an expert's float graph for integer inputs x [n, D]."""
    source, target = graph.graph.input[0].name, graph.graph.output[0].name
    inputs = x.astype(np.float32) * np.float32(2.0**ints.x_exp)
    outputs = [execute_onnx(graph, {source: row[None]})[target] for row in inputs]
    result: Int8 = (np.concatenate(outputs) * 2.0**-ints.y_exp).astype(np.int8)
    return result


@torch.no_grad()
def routed_vectors(learner: MoELearner, modules: Mapping[ExpertId, BrevitasExpert]) -> Vectors:
    """Real traffic: what the quantized model's experts get and return for validation text.

    layer [N], expert [N] int32; x [N, D] quantized inputs; y [N, D] what Brevitas returns for them, both int8. Rows are
    in the order of layer, token and slot. An expert to which no token goes is sent its layer's first token, at the end.
    """
    contexts = learner.samples.held[:, :-1]
    stream = learner.network.embedding(contexts)
    picked = torch.linspace(0, contexts.numel() - 1, min(VECTOR_TOKENS, contexts.numel())).long()
    routed: list[tuple[ExpertId, Tensor]] = []
    for i, block in enumerate(learner.network.layers):
        stream, inputs = block.attend(stream)
        layer = {e.expert: module for e, module in modules.items() if e.layer == i}
        y, routing = block.mixture(inputs, brevitas_experts(layer))
        stream = stream + y.view_as(stream)
        routed += [
            (ExpertId(i, e), row)
            for row, slots in zip(inputs[picked], routing.experts[picked].tolist(), strict=True)
            for e in slots
        ]
        unseen = set(range(len(routing.counts))) - set(routing.experts[picked].flatten().tolist())
        routed += [(ExpertId(i, e), inputs[0]) for e in sorted(unseen)]
    x = np.empty((len(routed), learner.config.d_model), dtype=np.int8)  # [N, D]
    y = np.empty_like(x)
    for expert, module in modules.items():  # all rows of an expert at once, for Brevitas takes milliseconds a call
        mine = [i for i, (e, _) in enumerate(routed) if e == expert]
        x[mine] = module.quantize(torch.stack([routed[i][1] for i in mine]))
        y[mine] = module.forward_ints(x[mine])
    return {
        "layer": np.array([e.layer for e, _ in routed], dtype=np.int32),
        "expert": np.array([e.expert for e, _ in routed], dtype=np.int32),
        "x": x,
        "y": y,
    }


def _modules(learner: MoELearner, allocation: Allocation) -> dict[ExpertId, BrevitasExpert]:
    return {expert: learner.expert(expert, allocation.precision(expert)) for expert in learner.config.expert_ids}


def _rows_of(vectors: Vectors, expert: ExpertId) -> NDArray[np.bool_]:
    mine: NDArray[np.bool_] = (vectors["layer"] == expert.layer) & (vectors["expert"] == expert.expert)
    return mine


def _is_written(path: Path, ints: ExpertInts) -> bool:
    """Whether `path` holds these integers; a damaged file does not."""
    try:
        found = ExpertInts.load(path)
    except WattbitError:
        return False
    return all(np.array_equal(getattr(found, f.name), getattr(ints, f.name)) for f in fields(ints))
