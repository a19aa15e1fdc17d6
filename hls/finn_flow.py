"""One expert through FINN as a library: QONNX to streamlined graph to RTL parameters and weight memory.

FINN's own layers cover an expert but for its two requantisations, which it would express as 255 thresholds a channel.
`_requant` makes them FINN `Requant` nodes of the exact scale multiplier * 2^-shift instead, after checking that the
thresholds define the same function. (FINN's InferRequantLayer derives scales from differences of float32 thresholds,
which loses bits.) The input quantiser and the output scale stay on the host.
"""

import logging
import os
import re
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wattbit.arith import OUT_BITS, ExpertInts, Int32, Int64, forward, signed_range
from wattbit.errors import WattbitError
from wattbit.hls.engine_class import EngineClass

FLOAT32_ULP = 2.0**-23
OPERATORS = frozenset({"Add", "MatMul", "Quant", "Relu"})  # of an expert's QONNX file; these have an RTL form
EXPECTED = ["MultiThreshold", "MatMul", "MultiThreshold", "MatMul", "MultiThreshold", "Mul"]


@dataclass(frozen=True)
class FinnLayer:
    """What FINN made of one layer: its mvu_vvu_axi parameters, and its weight memory's words in hexadecimal."""

    parameters: dict[str, int]
    memory: tuple[str, ...]


def lower(onnx: Path, ints: ExpertInts, spec: EngineClass, part: str, clock_ns: float = 10.0) -> list[FinnLayer]:
    """FINN's layers fc1 and fc2 for an expert's QONNX file, folded as `spec` says.

    Raises WattbitError when the graph is not that of an expert, its thresholds are not the requantisation of `ints`, or
    FINN's execution of the hardware graph differs from `wattbit.arith.forward`.
    """
    with tempfile.TemporaryDirectory(prefix="finn-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["FINN_BUILD_DIR"] = folder  # FINN reads its settings from the environment only
        from finn.util.settings import initialize_dummy_settings

        initialize_dummy_settings()
        logging.getLogger("finn_logger").setLevel(logging.ERROR)
        model = _streamline(onnx)
        model = _to_hardware(model, ints)
        _check_execution(model, ints)
        return _generate(model, spec, part, clock_ns)


def structure(onnx: Path) -> list[tuple[Any, ...]]:
    """An ONNX graph without its numbers: operators, attributes, shapes of constants, and the widths of quantisers.

    Raises WattbitError for a file that is no ONNX model, and an operator that has no RTL form.
    """
    import onnx as library
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        graph = library.load(str(onnx)).graph
    except DecodeError as error:
        raise WattbitError(f"{onnx} is no ONNX model ({error}); run `wattbit export` again") from None
    strange = next((node for node in graph.node if node.op_type not in OPERATORS), None)
    if strange is not None:
        raise WattbitError(
            f"{onnx.name}: node {strange.name or strange.output[0]} is a {strange.op_type}, which has no RTL form; "
            f"an expert on the FPGA is made of {', '.join(sorted(OPERATORS))}: place it on arm"
        )
    constants = {i.name: library.numpy_helper.to_array(i) for i in graph.initializer}
    return [
        (
            node.op_type,
            sorted(str(a) for a in node.attribute),
            [constants[name].shape if name in constants else None for name in node.input],
            [float(constants[name]) for name in node.input[2:]] if node.op_type == "Quant" else [],  # zero point, width
        )
        for node in graph.node
    ]


def thresholds(multiplier: Int32, shift: int, lo: int, hi: int) -> Int64:
    """Integer thresholds [C, hi - lo] of a requantisation: the least acc whose output is at least lo + 1, ..., hi."""
    steps = (np.arange(lo + 1, hi + 1, dtype=np.int64) << shift) - (1 << (shift - 1))
    result: Int64 = -(-steps // multiplier.astype(np.int64)[:, None])
    return result


def _streamline(onnx: Path) -> Any:
    from finn.transformation.qonnx.convert_qonnx_to_finn import ConvertQONNXtoFINN
    from finn.transformation.streamline import Streamline
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames, RemoveStaticGraphInputs
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes
    from qonnx.util.cleanup import cleanup_model

    model = cleanup_model(ModelWrapper(str(onnx))).transform(ConvertQONNXtoFINN())
    steps = (InferShapes(), GiveUniqueNodeNames(), GiveReadableTensorNames(), InferDataTypes())
    for step in (*steps, RemoveStaticGraphInputs(), Streamline(), InferDataTypes()):
        model = model.transform(step)
    found = [node.op_type for node in model.graph.node]
    if found != EXPECTED:
        raise WattbitError(f"{onnx.name} streamlines to {found}, not to an expert's {EXPECTED}; export it again")
    return model


def _to_hardware(model: Any, ints: ExpertInts) -> Any:
    """Cut off the host's part, turn thresholds into Requant and products into MVAU nodes."""
    from finn.transformation.fpgadataflow.convert_to_hw.quantized_matrix_vector_activation import (
        InferQuantizedMatrixVectorActivation,
    )
    from finn.transformation.fpgadataflow.minimize_accumulator_width import MinimizeAccumulatorWidth
    from qonnx.transformation.general import GiveUniqueNodeNames
    from qonnx.transformation.infer_datatypes import InferDataTypes

    graph = model.graph
    quantiser, _, first, _, second, scale = list(graph.node)
    for node, tensor, ends in ((quantiser, quantiser.output[0], graph.input), (scale, scale.input[0], graph.output)):
        info = model.get_tensor_valueinfo(tensor)
        graph.node.remove(node)
        graph.value_info.remove(info)
        ends.pop()
        ends.append(info)
    top = 2**ints.precision.act_bits - 1
    for node, multiplier, shift, lo, hi in (
        (first, ints.m1, ints.shift1, 0, top),
        (second, ints.m2, ints.shift2, *signed_range(OUT_BITS)),
    ):
        _requant(model, node, multiplier, shift, lo, hi)
    for step in (
        InferQuantizedMatrixVectorActivation(),
        GiveUniqueNodeNames(),
        InferDataTypes(),
        MinimizeAccumulatorWidth(),
        InferDataTypes(),
    ):
        model = model.transform(step)
    return model


def _requant(model: Any, node: Any, multiplier: Int32, shift: int, lo: int, hi: int) -> None:
    """Replace a MultiThreshold node by the Requant node of multiplier * 2^-shift, if it is the same function."""
    from onnx import helper

    exact = thresholds(multiplier, shift, lo, hi)
    found = model.get_initializer(node.input[1]).astype(np.float64)  # rounded to float32 by FINN
    slack = 8 * FLOAT32_ULP * np.abs(found)
    same = found.shape == exact.shape and np.all((np.ceil(found - slack) <= exact) & (exact <= np.ceil(found + slack)))
    if not same:
        raise WattbitError(f"{node.name}: FINN's thresholds are not the requantisation of the exported integers")
    scale, bias = f"{node.name}_scale", f"{node.name}_bias"
    model.set_initializer(scale, (multiplier * 2.0**-shift).astype(np.float32))
    model.set_initializer(bias, np.zeros(len(multiplier), dtype=np.float32))
    shape = model.get_tensor_shape(node.input[0])
    requant = helper.make_node(
        "Requant",
        [node.input[0], scale, bias],
        list(node.output),
        domain="finn.custom_op.fpgadataflow",
        backend="fpgadataflow",
        NumChannels=len(multiplier),
        PE=1,
        inputDataType=model.get_tensor_datatype(node.input[0]).name,
        outputDataType=model.get_tensor_datatype(node.output[0]).name,
        numInputVectors=list(shape[:-1]),
        name=f"Requant_{node.name}",
    )
    index = list(model.graph.node).index(node)
    model.graph.node.insert(index, requant)
    model.graph.node.remove(node)


def _check_execution(model: Any, ints: ExpertInts) -> None:
    """FINN's numpy execution of the hardware graph must equal the deployed arithmetic."""
    from qonnx.core.onnx_exec import execute_onnx

    lo, hi = signed_range(ints.precision.act_bits)
    x = np.random.default_rng(0).integers(lo, hi + 1, (1, ints.shape.d_model)).astype(np.int8)
    name = model.graph.input[0].name
    feed = x.astype(np.float32).reshape(model.get_tensor_shape(name))
    y = execute_onnx(model, {name: feed})[model.graph.output[0].name]
    if not np.array_equal(y.reshape(1, -1), forward(ints, x)):
        raise WattbitError(f"{ints.expert}: FINN's hardware graph differs from the exported integers; export it again")


def _generate(model: Any, spec: EngineClass, part: str, clock_ns: float) -> list[FinnLayer]:
    from finn.transformation.fpgadataflow.prepare_ip import PrepareIP
    from finn.transformation.fpgadataflow.specialize_layers import SpecializeLayers
    from qonnx.custom_op.registry import getCustomOp
    from qonnx.transformation.general import GiveUniqueNodeNames

    for node in model.graph.node:
        getCustomOp(node).set_nodeattr("preferred_impl_style", "rtl")
    model = model.transform(SpecializeLayers(part)).transform(GiveUniqueNodeNames())
    found = [node.op_type for node in model.graph.node]
    if found != ["MVAU_rtl", "Requant_rtl"] * 2:
        raise WattbitError(f"FINN has no RTL for {spec.precision} on {part}: it specialises to {found}")
    folding = ((spec.pe1, spec.simd1), (spec.pe1, None), (spec.pe2, spec.simd2), (spec.pe2, None))
    for node, (pe, simd) in zip(model.graph.node, folding, strict=True):
        layer = getCustomOp(node)
        layer.set_nodeattr("PE", pe)
        if simd is not None:
            layer.set_nodeattr("SIMD", simd)
            layer.set_nodeattr("mem_mode", "internal_decoupled")
    model = model.transform(PrepareIP(part, clock_ns))
    return [_layer(getCustomOp(node)) for node in model.graph.node if node.op_type == "MVAU_rtl"]


def _layer(layer: Any) -> FinnLayer:
    folder = Path(layer.get_nodeattr("code_gen_dir_ipgen"))
    wrapper = (folder / f"{layer.get_nodeattr('gen_top_module')}_wrapper.v").read_text(encoding="utf-8")
    found = re.findall(r"parameter\s+(\w+)\s*=\s*(\d+)\b", wrapper)
    memory = (folder / "memblock.dat").read_text(encoding="ascii").split()
    return FinnLayer({name: int(value) for name, value in found}, tuple(memory))
