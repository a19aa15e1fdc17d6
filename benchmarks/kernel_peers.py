"""What a user would pick instead of wattbit's kernels on this machine; each is there only if it is installed.

    wattbit's environment holds ONNX Runtime and torch. For the others:
    pip install --no-deps torchao==0.18.0
    pip download --no-deps --no-binary llama-cpp-python --dest $WATTBIT_CACHE/peers llama-cpp-python==0.3.36

A peer is a callable: peer(calls) multiplies its tokens that often, each time with the copy of the weights that was not
used for longest, and returns the seconds of each call.
"""

import ctypes
import importlib
import importlib.util
import tarfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from wattbit.errors import ToolError, WattbitError
from wattbit.processes import execute

Peer = Callable[[int], list[float]]
Address = ctypes.c_void_p

COLD_BYTES = 256 << 20  # weights that a peer goes through before it meets one again: far more than caches hold
GGML_TYPES = {8: "q8_0", 6: "q6_K", 5: "q5_K", 4: "q4_0", 3: "q3_K", 2: "q2_K"}
ONNX_BITS = (8, 4)  # it has 2 bits, but no fast ones: 200 to 460 times our time
SDIST = "llama_cpp_python-*.tar.gz"


@dataclass(frozen=True)
class Case:
    """What a peer is to be: bits of a weight, shape, threads, and tokens that are multiplied together."""

    bits: int
    rows: int
    cols: int
    threads: int
    tokens: int = 1

    @property
    def copies(self) -> int:
        return max(2, COLD_BYTES // (self.rows * self.cols * self.bits // 8))


def peers(case: Case, ggml: Path | None) -> Iterator[tuple[str, Peer]]:
    """The peers of the case's width by name. `ggml`: the library that build_ggml made."""
    if ggml and case.bits in GGML_TYPES:
        kind = GGML_TYPES[case.bits]
        for repack, suffix in ((0, ""), (1, " repacked")):
            peer = _ggml(ggml, kind, case, repack)
            if peer:
                yield f"ggml {kind.upper()}{suffix}", peer
    if case.bits in ONNX_BITS:
        yield f"ONNX Runtime MatMulNBits {case.bits}", _onnx(case)
    if case.bits in (8, 4):
        yield from _torch(case)


def build_ggml(cache: Path) -> Path | str:
    """The library of kernel_peers_ggml.c, with ggml built from llama.cpp's source package in `cache`; or why not."""
    library = cache / "libpeer_ggml.so"
    if library.exists():
        return library
    packages = sorted(cache.glob(SDIST))
    if not packages:
        return (
            "ggml: no source package; get it with `pip download --no-deps --no-binary llama-cpp-python "
            f"--dest {cache} llama-cpp-python==0.3.36`"
        )
    with tarfile.open(packages[-1]) as archive:
        archive.extractall(cache, filter="data")
    source = next(cache.glob("llama_cpp_python-*/vendor/llama.cpp/ggml"))
    (source / "ggml.pc.in").touch()  # the package lacks it
    build = cache / "ggml"
    options = ["BUILD_TYPE=Release", "GGML_NATIVE=ON", "GGML_BUILD_TESTS=OFF", "GGML_BUILD_EXAMPLES=OFF"]
    options = [f"-D{'CMAKE_' if option.startswith('BUILD_T') else ''}{option}" for option in options]
    link = [f"-L{build}/src", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{build}/src"]
    ours = str(Path(__file__).with_name("kernel_peers_ggml.c"))
    for command in (
        ["cmake", "--fresh", "-S", str(source), "-B", str(build), "-DBUILD_SHARED_LIBS=ON", *options],
        ["cmake", "--build", str(build), "-j2"],
        ["gcc", "-O2", "-shared", "-fPIC", f"-I{source}/include", ours, *link, "-o", str(library)],
    ):
        try:
            done = execute(command)
        except FileNotFoundError:
            return f"ggml: {command[0]} is not installed; run `apt-get install cmake g++`"
        if done.returncode:
            raise ToolError(command, done.returncode, done.stderr)
    return library


def missing_torchao() -> str | None:
    """Why torchao's peers are left out; None when it is there."""
    if importlib.util.find_spec("torchao"):
        return None
    return "torchao: not installed; get it with `pip install --no-deps torchao==0.18.0`"


def _ggml(path: Path, kind: str, case: Case, repack: int) -> Peer | None:
    library = ctypes.CDLL(str(path))
    library.peer_open.restype = Address
    handle = library.peer_open(kind.encode(), case.rows, case.cols, case.copies, case.threads, repack, case.tokens)

    def run(calls: int) -> list[float]:
        seconds = (ctypes.c_double * calls)()
        library.peer_time(Address(handle), calls, seconds)
        if min(seconds) < 0:
            raise WattbitError(f"ggml failed to multiply at {kind}; build it again or remove {path}")
        return list(seconds)

    if handle is None:
        return None
    weakref.finalize(run, library.peer_close, Address(handle))
    return run


def _onnx(case: Case) -> Peer:
    """MatMulNBits with int8 arithmetic, blocks of 128; one session runs all copies one after another."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    blocks, blob = case.cols // 128, 128 * case.bits // 8
    packed = rng.integers(0, 256, (case.rows, blocks, blob), np.uint8)
    scales = rng.random((case.rows, blocks), np.float32)
    nodes, weights = [], [numpy_helper.from_array(scales, "scales")]
    for i in range(case.copies):
        weights.append(numpy_helper.from_array(np.roll(packed, i, 0), f"w{i}"))
        attributes = {"K": case.cols, "N": case.rows, "bits": case.bits, "block_size": 128, "accuracy_level": 4}
        inputs = ["x", f"w{i}", "scales"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **attributes))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.tokens, case.cols])
    outputs = [
        helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [case.tokens, case.rows]) for i in range(case.copies)
    ]
    graph = helper.make_graph(nodes, "peer", [x], outputs, weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feed = {"x": rng.random((case.tokens, case.cols), np.float32)}

    def run(calls: int) -> list[float]:
        seconds = []
        for _ in range(-(-calls // case.copies)):
            start = time.perf_counter()
            session.run(None, feed)
            seconds.append((time.perf_counter() - start) / case.copies)
        return seconds

    return run


def _torch(case: Case) -> Iterator[tuple[str, Peer]]:
    import torch

    x = torch.randn(case.tokens, case.cols, dtype=torch.bfloat16)
    if case.bits == 8:
        weights = [torch.randint(-127, 128, (case.rows, case.cols), dtype=torch.int8) for _ in range(case.copies)]
        scales = torch.ones(case.rows, dtype=torch.bfloat16)
        calls = [lambda w=w: torch._weight_int8pack_mm(x, w, scales) for w in weights]
        yield "torch _weight_int8pack_mm", _python_calls(calls, case.threads)
    else:
        codes = torch.randint(0, 16, (case.rows, case.cols), dtype=torch.int32)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        zeros = torch.ones(case.cols // 128, case.rows, 2, dtype=torch.bfloat16)
        copies = [packed.clone() for _ in range(case.copies)]
        calls = [lambda w=w: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w, 128, zeros) for w in copies]
        yield "torch _weight_int4pack_mm", _python_calls(calls, case.threads)
    yield from _torchao(case)


def _torchao(case: Case) -> Iterator[tuple[str, Peer]]:
    import torch

    if missing_torchao():
        return
    quantization: Any = importlib.import_module("torchao.quantization")  # may be absent, for mypy too
    configs: dict[str, Any] = {"Int8WeightOnly": quantization.Int8WeightOnlyConfig}
    configs["Int8DynamicActivationInt8Weight"] = quantization.Int8DynamicActivationInt8WeightConfig
    x = torch.randn(case.tokens, case.cols, dtype=torch.bfloat16)
    for name, config in configs.items() if case.bits == 8 else ():
        layers = []
        for _ in range(case.copies):
            layer = torch.nn.Sequential(torch.nn.Linear(case.cols, case.rows, bias=False, dtype=torch.bfloat16))
            quantization.quantize_(layer, config())
            layers.append(layer)
        yield f"torchao {name}", _python_calls([partial(layer, x) for layer in layers], case.threads)


def _python_calls(functions: Sequence[Callable[[], Any]], threads: int) -> Peer:
    import torch

    copies = cycle(functions)

    def run(calls: int) -> list[float]:
        seconds = []
        torch.set_num_threads(threads)
        with torch.inference_mode():
            for function in islice(copies, calls):
                start = time.perf_counter()
                function()
                seconds.append(time.perf_counter() - start)
        return seconds

    return run
