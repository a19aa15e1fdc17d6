"""From a checkpoint to the tensors of wattbit.models.gated, which quantizes them for the C runtime.

Mixtral, OLMoE and Qwen-MoE, and DeepSeek-MoE 16B if none of its layers is dense, are such models. Tensors are read from
the shards when they are asked for, so that the float model is never whole in memory.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.checkpoint import CONFIG, Checkpoint
from wattbit.models.config import GatedConfig
from wattbit.models.families.family import Family
from wattbit.models.families.open import empty_network
from wattbit.models.gated import check_group, decoder_config, finite, matrix_bits, quantize_weights, rope, shapes
from wattbit.plan import Allocation

OUTER = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
LAYER = {
    "norm1": "input_layernorm.weight",
    "norm2": "post_attention_layernorm.weight",
    "router": "mlp.gate.weight",
    "shared.router": "mlp.shared_expert_gate.weight",
    **{f"{part}": f"self_attn.{part}_proj.weight" for part in "qkvo"},
    **{f"{part}.bias": f"self_attn.{part}_proj.bias" for part in "qkv"},
    **{f"{part}_norm": f"self_attn.{part}_norm.weight" for part in "qk"},
    **{f"shared.{part}": f"mlp.shared_expert.{part}_proj.weight" for part in ("gate", "up", "down")},
}


class GatedWeights(Mapping[str, Tensor]):
    """Float tensors of a checkpoint by the names of wattbit.models.gated."""

    def __init__(self, checkpoint: Checkpoint, family: Family, config: GatedConfig) -> None:
        self._checkpoint, self._family = checkpoint, family
        self._shapes = shapes(config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, name: str) -> Tensor:
        shape = self._shapes[name]
        if name in OUTER:
            return self._family.read(self._checkpoint, [OUTER[name]], shape)
        _, layer, part = name.split(".", 2)
        prefix = f"model.layers.{layer}"
        if part.startswith("experts."):
            _, expert, matrix = part.split(".")
            return self._family.expert(self._checkpoint, prefix, int(expert), matrix, shape)
        return self._family.read(self._checkpoint, [f"{prefix}.{LAYER[part]}"], shape)


def gated_weights(checkpoint: Checkpoint, context: int | None = None) -> tuple[GatedConfig, GatedWeights]:
    """Sizes and float tensors for `wattbit.models.gated.quantize`; context: tokens, at most the checkpoint's own.

    Raises WattbitError for a checkpoint that the runtime's arithmetic does not cover.
    """
    family, network = empty_network(checkpoint)
    config = gated_config(checkpoint, family, network, context)
    return config, GatedWeights(checkpoint, family, config)


def gated_config(checkpoint: Checkpoint, family: Family, network: Any, context: int | None) -> GatedConfig:
    c = network.config
    layers = [network.get_submodule(name) for name in family.layers(network)]
    mixtures = [family.mixture(layer) for layer in layers]
    rope = getattr(c, "rope_parameters", None) or {}
    attention: Any = family.attention(layers[0]) if hasattr(layers[0], "self_attn") else None
    for wrong, what in (
        (not hasattr(attention, "k_proj"), "attention other than grouped queries"),
        (None in mixtures, "dense layers among its mixtures"),
        (getattr(c, "hidden_act", None) != "silu", f"experts with {getattr(c, 'hidden_act', None)}, not silu"),
        (rope.get("rope_type", "default") != "default", f"rotary positions of type {rope.get('rope_type')}"),
        (getattr(c, "clip_qkv", None) is not None, "clipped queries and keys"),
        (getattr(c, "attention_bias", False), "biases in attention's output"),
        (bool(getattr(c, "sliding_window", None)), "attention in a sliding window"),
    ):
        if wrong:
            raise WattbitError(
                f"{checkpoint.folder / CONFIG} has {what}, which the runtime does not; run that model in PyTorch"
            )
    first = mixtures[0]
    assert first is not None and attention is not None
    block: Any = family.block(layers[0])
    shared = hasattr(block, "shared_expert")
    return GatedConfig(
        vocab_size=c.vocab_size,
        d_model=c.hidden_size,
        d_hidden=first.matrices(0)["down"].shape[1],
        layers=len(layers),
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_width=attention.head_dim,
        experts=first.count,
        top_k=family.top_k(c),
        context=min(context or c.max_position_embeddings, c.max_position_embeddings),
        renormalize=getattr(c, "norm_topk_prob", True),
        qk_norm=qk_norm(attention),
        qkv_bias=attention.k_proj.bias is not None,
        shared_hidden=block.shared_expert.up_proj.weight.shape[0] if shared else 0,
        tied_head=c.tie_word_embeddings,
        rope_theta=rope["rope_theta"],
        norm_eps=c.rms_norm_eps,
    )


def qk_norm(attention: Any) -> str:
    if not hasattr(attention, "q_norm"):
        return "none"
    return "head" if len(attention.q_norm.weight) == attention.head_dim else "whole"


class GatedStream:
    """What `wattbit.models.gated.quantize` makes of a checkpoint, one matrix in memory at a time.

    shapes: of every tensor [rows, depth]; bits and group: of matrices of integers, as in wattbit.models.portable.
    """

    def __init__(
        self,
        config: GatedConfig,
        floats: Mapping[str, Tensor],
        allocation: Allocation,
        backbone_bits: int = 8,
        group_size: int | None = None,
        head_bits: int | None = None,
    ) -> None:
        self.sizes = decoder_config(config)
        self.bits: dict[str, int] = {}
        self.group: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, int]] = {}
        self._floats = floats
        self._tables = dict(zip(("rope.cos", "rope.sin"), rope(config), strict=True))
        self._last: tuple[str, Tensor, Tensor] | None = None  # the matrix quantized last, and its scales
        for name, table in self._tables.items():
            self.shapes[name] = (table.shape[0], table.shape[1])
        for name, (rows, *columns) in shapes(config).items():
            depth = columns[0] if columns else 1
            self.shapes[name] = (rows, depth)
            if (width := matrix_bits(name, allocation, backbone_bits, head_bits)) is not None:
                self.bits[name] = width
                check_group(depth, group_size or depth)
                self.shapes[f"{name}.scale"] = (rows, depth // (group_size or depth))
                if group_size is not None:
                    self.group[name] = group_size

    def load(self, name: str) -> NDArray[np.int8] | NDArray[np.float32]:
        """A tensor of `shapes`; WattbitError where one of its weights is no number."""
        owner = name.removesuffix(".scale")
        if name in self._tables:
            found = self._tables[name]
        elif owner in self.bits:
            integers, scale = self._quantized(owner)
            found = integers if owner == name else scale
        else:
            found = finite(name, self._floats[name])
        return found.numpy().reshape(self.shapes[name])

    def _quantized(self, name: str) -> tuple[Tensor, Tensor]:
        if self._last is None or self._last[0] != name:
            columns = self.group.get(name, self.shapes[name][1])
            self._last = (name, *quantize_weights(finite(name, self._floats[name]), self.bits[name], columns))
        return self._last[1:]
