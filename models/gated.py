"""Models with gated experts, as Mixtral, OLMoE and Qwen-MoE have them: float weights, their quantization, and the
quantized model in the deployed arithmetic (see wattbit.models.decode), which is the reference of the runtime.

Float tensors have these names (i: layer, e: expert; matrices are [out, in]); loaders of other formats fill them in:

    embedding [V, D]    norm [D]    head [V, D], or absent where it is the embedding
    layers.i.{norm1, norm2} [D]    layers.i.{q, k, v, o}    layers.i.{q, k, v}.bias, where the model has them
    layers.i.{q_norm, k_norm}    layers.i.router [E, D]
    layers.i.experts.e.{gate, up} [H, D]    layers.i.experts.e.down [D, H]
    layers.i.shared.{gate, up, down}    layers.i.shared.router [1, D]

Experts have their own widths; attention, head and the shared expert have `backbone_bits`, the head `head_bits` where
these are given; the rest is float32.
Activations before a matrix of integers are quantized for each token to int8 by their largest magnitude. Sums are exact;
they are scaled in double, or, where groups of columns have scales of their own, in float32 from group to group.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.config import GatedConfig
from wattbit.models.decode import causal
from wattbit.models.network import rotate
from wattbit.models.portable import Portable
from wattbit.plan import Allocation, ExpertId, Precision

ACT_MAX = 127
GROUP_UNIT = 32  # columns; kernels scale their sums at multiples of it
CLIPS = (
    1.0,
    0.95,
    0.9,
    0.85,
    0.8,
    0.75,
    0.7,
    0.65,
    0.6,
)  # clipping thresholds tried, as shares of the peak


def shapes(config: GatedConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every float tensor of a model."""
    c, D = config, config.d_model
    found: dict[str, tuple[int, ...]] = {"embedding": (c.vocab_size, D), "norm": (D,)}
    if not c.tied_head:
        found["head"] = (c.vocab_size, D)
    queries, keys = c.heads * c.head_width, c.kv_heads * c.head_width
    for i in range(c.layers):
        parts: dict[str, tuple[int, ...]] = {"norm1": (D,), "norm2": (D,), "router": (c.experts, D)}
        parts |= {"q": (queries, D), "k": (keys, D), "v": (keys, D), "o": (D, queries)}
        if c.qkv_bias:
            parts |= {"q.bias": (queries,), "k.bias": (keys,), "v.bias": (keys,)}
        if c.qk_norm != "none":
            whole = c.qk_norm == "whole"
            parts |= {"q_norm": (queries if whole else c.head_width,), "k_norm": (keys if whole else c.head_width,)}
        for e in range(c.experts):
            parts |= _gated_shapes(f"experts.{e}", D, c.d_hidden)
        if c.shared_hidden:
            parts |= _gated_shapes("shared", D, c.shared_hidden) | {"shared.router": (1, D)}
        found |= {f"layers.{i}.{name}": shape for name, shape in parts.items()}
    return found


def _gated_shapes(name: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.gate": (hidden, width), f"{name}.up": (hidden, width), f"{name}.down": (width, hidden)}


def check_group(depth: int, group: int) -> None:
    """Raise WattbitError where rows of `depth` columns have no such groups."""
    if depth % group or (group != depth and group % GROUP_UNIT):
        raise WattbitError(f"group_size must be a multiple of {GROUP_UNIT} that divides {depth} columns, not {group}")


def finite(name: str, weights: Tensor) -> Tensor:
    """The weights in float32; WattbitError where one of them is no number."""
    found = weights.float()
    if not bool(found.isfinite().all()):
        raise WattbitError(f"tensor {name} has weights that are no finite numbers; look at the checkpoint")
    return found


def quantize_weights(weights: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Integers [N, K] and scales [N, K / group] of float weights: of the clips the one of least squared error."""
    rows, depth = weights.shape
    check_group(depth, group)
    top = 2 ** (bits - 1) - 1
    grouped = weights.float().view(rows, -1, group)
    peak = grouped.abs().amax(dim=-1).clamp(min=1e-12)  # [N, G]
    best, error = peak / top, torch.full_like(peak, torch.inf)
    for clip in CLIPS:
        scale = peak * clip / top
        found = ((grouped / scale[..., None]).round().clamp(-top, top) * scale[..., None] - grouped).square().sum(-1)
        best, error = torch.where(found < error, scale, best), torch.minimum(found, error)
    integers = (grouped / best[..., None]).round().clamp(-top, top).to(torch.int8)
    return integers.view(rows, depth), best


def quantize(
    config: GatedConfig,
    floats: Mapping[str, Tensor],
    allocation: Allocation,
    backbone_bits: int = 8,
    group_size: int | None = None,
    head_bits: int | None = None,
) -> "GatedModel":
    """The quantized model. group_size: columns that share a weight scale, a multiple of 32; None: one scale a row.

    Raises WattbitError where weights are missing, misshapen or not finite, or the allocation is of another model.
    """
    for name, shape in shapes(config).items():
        if name not in floats or tuple(floats[name].shape) != shape:
            found = "missing" if name not in floats else f"of shape {list(floats[name].shape)}"
            raise WattbitError(f"tensor {name} is {found}, not {list(shape)}; the weights are of another model")
    tensors: dict[str, Tensor] = dict(zip(("rope.cos", "rope.sin"), rope(config), strict=True))
    bits, group = {}, {}
    for name in shapes(config):
        weights = finite(name, floats[name])
        width = matrix_bits(name, allocation, backbone_bits, head_bits)
        if width is None:
            tensors[name] = weights
            continue
        bits[name] = width
        if group_size is not None:
            group[name] = group_size
        columns = group_size or weights.shape[1]
        tensors[name], tensors[f"{name}.scale"] = quantize_weights(weights, width, columns)
    return GatedModel(config, Portable(decoder_config(config), tensors, bits, group))


def matrix_bits(name: str, allocation: Allocation, backbone_bits: int, head_bits: int | None = None) -> int | None:
    """Width of a tensor's integers, or None for one that stays float32. head_bits: None is backbone_bits."""
    *path, last = name.split(".")
    if "experts" in path:
        return allocation.precision(ExpertId(int(path[1]), int(path[3]))).weight_bits
    if name == "head":
        return Precision(head_bits or backbone_bits).weight_bits
    if last in ("q", "k", "v", "o") or (path[-1:] == ["shared"] and last != "router"):
        return Precision(backbone_bits).weight_bits
    return None


def rope(config: GatedConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_width / 2] of the rotary positions, float32."""
    half = config.head_width // 2
    frequency = config.rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(config.context)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def decoder_config(config: GatedConfig) -> dict[str, Any]:
    """The sizes as wattbit.models.portable writes them."""
    c = config
    return {
        "vocabulary": c.vocab_size,
        "width": c.d_model,
        "hidden": c.d_hidden,
        "layers": c.layers,
        "heads": c.heads,
        "kv_heads": c.kv_heads,
        "head_width": c.head_width,
        "experts": c.experts,
        "active": c.top_k,
        "context": c.context,
        "norm": "rms",
        "experts_kind": "gated",
        "qk_norm": c.qk_norm,
        "renormalize": c.renormalize,
        "shared_hidden": c.shared_hidden,
        "norm_eps": c.norm_eps,
    }


class GatedModel:
    """The quantized model: `logits` is the reference, `portable` what is deployed."""

    def __init__(self, config: GatedConfig, portable: Portable) -> None:
        self.config = config
        self.portable = portable
        self._tensors = portable.tensors

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [S, V] in double of tokens [S]."""
        x = self._tensors["embedding"][tokens].double()
        for i in range(self.config.layers):
            x = x + self._attend(f"layers.{i}", self._norm(x, f"layers.{i}.norm1"))
            x = x + self._mix(f"layers.{i}", self._norm(x, f"layers.{i}.norm2"))
        return self._linear(self._norm(x, "norm"), "head" if "head" in self._tensors else "embedding")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        """x [T, K] times a matrix [N, K]: in double, or on int8 activations with exact sums."""
        if name in self.portable.bits:
            top = x.abs().amax(dim=-1, keepdim=True)  # [T, 1]
            q = (x * torch.where(top > 0, ACT_MAX / top, 0)).round()
            y = self._scaled(q, name) * (top / ACT_MAX)
        else:
            y = F.linear(x, self._tensors[name].double())
        return y + self._tensors[f"{name}.bias"].double() if f"{name}.bias" in self._tensors else y

    def _scaled(self, q: Tensor, name: str) -> Tensor:
        """Integers q [T, K] times a matrix of integers, and its scales [N, G]: exact sums, in float32 over groups."""
        weights, scale = self._tensors[name].double(), self._tensors[f"{name}.scale"]
        if name not in self.portable.group:
            return F.linear(q, weights) * scale.double().T
        y = torch.zeros(len(q), len(weights))
        for w, x, s in zip(weights.chunk(scale.shape[1], 1), q.chunk(scale.shape[1], 1), scale.unbind(1), strict=True):
            y = y + F.linear(x, w).float() * s
        return y.double()

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(dim=-1, keepdim=True) + self.config.norm_eps).rsqrt() * self._tensors[name].double()

    def _attend(self, layer: str, x: Tensor) -> Tensor:
        c, length = self.config, len(x)
        cos, sin = (self._tensors[f"rope.{part}"][:length].double() for part in ("cos", "sin"))

        def heads(part: str) -> Tensor:  # [heads, S, d]
            y = self._linear(x, f"{layer}.{part}")
            if c.qk_norm == "whole" and part != "v":
                y = self._norm(y, f"{layer}.{part}_norm")
            y = y.view(length, -1, c.head_width).transpose(0, 1)
            if c.qk_norm == "head" and part != "v":
                y = self._norm(y, f"{layer}.{part}_norm")
            return y if part == "v" else rotate(y, cos, sin)

        k, v = (heads(part).repeat_interleave(c.heads // c.kv_heads, dim=0) for part in ("k", "v"))
        y = causal(heads("q"), k, v)
        return self._linear(y.transpose(0, 1).reshape(length, -1), f"{layer}.o")

    def _mix(self, layer: str, x: Tensor) -> Tensor:
        c = self.config
        gates, chosen = self._linear(x, f"{layer}.router").softmax(dim=-1).topk(c.top_k, dim=-1)  # [T, K]
        if c.renormalize:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(x)
        for e in chosen.unique().tolist():
            token, slot = (chosen == e).nonzero(as_tuple=True)
            y.index_add_(0, token, self._expert(x[token], f"{layer}.experts.{e}") * gates[token, slot, None])
        if c.shared_hidden:
            y = y + self._expert(x, f"{layer}.shared") * self._linear(x, f"{layer}.shared.router").sigmoid()
        return y

    def _expert(self, x: Tensor, name: str) -> Tensor:
        hidden = F.silu(self._linear(x, f"{name}.gate")) * self._linear(x, f"{name}.up")
        return self._linear(hidden, f"{name}.down")
