"""llama.cpp on a file of random weights in the shape of one of our models; for benchmarks only.

Needs llama-cpp-python and gguf. One tensor holds all experts of a layer there, so that all have one format: it cannot
represent experts of mixed widths.
"""

from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as Quantization
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.models.config import GatedConfig

CODE_BYTES = {"Q8_0": 32, "Q4_0": 16}  # of a block of 32 weights, behind its float16 scale
BLOCK = 32


def write(config: GatedConfig, quantization: str, path: Path) -> None:
    """A GGUF file of the model's shape: matrices of one quantization, router, norms in float32."""
    c = config
    arch = "olmoe" if c.qk_norm == "whole" else "llama"
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.d_model)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.d_hidden)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_eps)
    writer.add_rope_dimension_count(c.head_width)
    writer.add_expert_count(c.experts)
    writer.add_expert_used_count(c.top_k)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("none")
    rng = np.random.default_rng(0)
    kind = Quantization[quantization]

    def matrix(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", blocks(rng, shape, quantization), raw_dtype=kind)

    def floats(name: str, *shape: int) -> None:
        values = np.ones(shape, np.float32) if len(shape) == 1 else rng.standard_normal(shape, np.float32)
        writer.add_tensor(f"{name}.weight", values if len(shape) == 1 else values * np.float32(3 * shape[-1] ** -0.5))

    queries, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    matrix("token_embd", c.vocab_size, c.d_model)
    matrix("output", c.vocab_size, c.d_model)
    floats("output_norm", c.d_model)
    for i in range(c.layers):
        for name, rows, columns in (
            ("attn_q", queries, c.d_model),
            ("attn_k", keys, c.d_model),
            ("attn_v", keys, c.d_model),
            ("attn_output", c.d_model, queries),
        ):
            matrix(f"blk.{i}.{name}", rows, columns)
        if arch == "olmoe":
            floats(f"blk.{i}.attn_q_norm", queries)
            floats(f"blk.{i}.attn_k_norm", keys)
        floats(f"blk.{i}.attn_norm", c.d_model)
        floats(f"blk.{i}.ffn_norm", c.d_model)
        floats(f"blk.{i}.ffn_gate_inp", c.experts, c.d_model)
        matrix(f"blk.{i}.ffn_gate_exps", c.experts, c.d_hidden, c.d_model)
        matrix(f"blk.{i}.ffn_up_exps", c.experts, c.d_hidden, c.d_model)
        matrix(f"blk.{i}.ffn_down_exps", c.experts, c.d_model, c.d_hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def blocks(rng: np.random.Generator, shape: tuple[int, ...], quantization: str) -> NDArray[np.uint8]:
    """Random blocks of a matrix [..., columns], as bytes: those of a row along the last axis."""
    size = 2 + CODE_BYTES[quantization]
    count = int(np.prod(shape)) // BLOCK
    data = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
    levels = 128 if quantization == "Q8_0" else 8
    data[:, :2] = np.array([shape[-1] ** -0.5 / levels], np.float16).view(np.uint8)
    return data.reshape(*shape[:-1], -1)


def peer(config: GatedConfig, quantization: str, threads: int, path: Path) -> Callable[[int], int]:
    """A function that takes a token in and returns the likeliest next one."""
    write(config, quantization, path)
    try:
        model = llama_cpp.Llama(
            str(path), n_ctx=config.context, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
        )
    except ValueError as error:
        raise WattbitError(f"llama.cpp does not load {path.name}: {error}") from None

    def step(token: int) -> int:
        if model.n_tokens + 1 >= config.context:
            model.reset()
        model.eval([token])
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (config.vocab_size,)).argmax())

    return step
