"""A quantized model as one file for any core: named arrays and the decoder's sizes, which tvm_schedules packs for one.

safetensors with metadata `format`, `config` (the fields of wattbit.tvm_schedules.model.format.DecoderConfig), `bits`
(width of each matrix of integers) and `group` (columns that share a scale), all JSON.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from wattbit.files import write_bytes
from wattbit.models.learner import MoELearner
from wattbit.plan import Allocation

FORMAT = "wattbit decoder 1"


@dataclass(frozen=True, eq=False)
class Portable:
    """tensors: int8 [rows, depth] for matrices of integers, whose widths are in `bits`; int32, float32 for the rest."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    bits: dict[str, int]
    group: dict[str, int]

    def save(self, path: Path) -> None:
        about = {"format": FORMAT} | {key: json.dumps(getattr(self, key)) for key in ("config", "bits", "group")}
        write_bytes(path, safetensors_bytes({k: v.contiguous() for k, v in self.tensors.items()}, metadata=about))


def export_decoder(learner: MoELearner, allocation: Allocation, path: Path) -> None:
    """Write the learner's model with every expert at its precision, the rest in float32."""
    decoder(learner, allocation).save(path)


@torch.no_grad()
def decoder(learner: MoELearner, allocation: Allocation) -> Portable:
    """See export_decoder."""
    network, config = learner.network, learner.config
    attention = network.layers[0].attention
    tensors = {
        "embedding": network.embedding.weight,
        "norm": network.norm.weight,
        "rope.cos": attention.cos,
        "rope.sin": attention.sin,
    }
    bits = {}
    for i, block in enumerate(network.layers):
        q, k, v = block.attention.qkv.weight.chunk(3)
        parts = {"q": q, "k": k, "v": v, "o": block.attention.out.weight, "router": block.mixture.router.weight}
        parts |= {"norm1": block.norm1.weight, "norm2": block.norm2.weight}
        tensors |= {f"layers.{i}.{name}": value for name, value in parts.items()}
    for expert in config.expert_ids:
        ints = learner.expert(expert, allocation.precision(expert)).ints()
        name = f"layers.{expert.layer}.experts.{expert.expert}"
        for part, weights, multiplier in (("up", ints.w1, ints.m1), ("down", ints.w2, ints.m2)):
            bits[f"{name}.{part}"] = ints.precision.weight_bits
            tensors[f"{name}.{part}"] = torch.from_numpy(weights)
            tensors[f"{name}.{part}.multiplier"] = torch.from_numpy(multiplier).int()
        integers = [ints.shift1, ints.shift2, ints.x_exp, ints.y_exp, ints.precision.act_bits]
        tensors[f"{name}.integers"] = torch.tensor(integers, dtype=torch.int32)
    sizes = {
        "vocabulary": config.vocab_size,
        "width": config.d_model,
        "hidden": config.d_hidden,
        "layers": config.layers,
        "heads": config.heads,
        "kv_heads": config.heads,
        "head_width": config.d_model // config.heads,
        "experts": config.experts,
        "active": config.top_k,
        "context": config.context,
        "norm": "layer",
        "experts_kind": "relu",
        "qk_norm": "none",
        "renormalize": True,
        "shared_hidden": 0,
        "norm_eps": network.norm.eps,
    }
    return Portable(sizes, {name: value.detach().clone() for name, value in tensors.items()}, bits, {})
