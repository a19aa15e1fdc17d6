"""The transformer. T tokens, B contexts of S tokens (T = B S), D model width, H hidden width, E experts, K of them
active, N = T K routed rows, V vocabulary.

A mixture layer sorts the routed rows by expert and hands them to an `Experts` function, so that float experts, the
batched quantized experts of training and the Brevitas modules take each other's place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wattbit.models.config import ModelConfig

Experts = Callable[[Tensor, list[int]], Tensor]
"""Outputs [N, D] of rows [N, D] sorted by expert, with each expert's number of rows [E]."""


@dataclass(frozen=True, eq=False)
class Routing:
    """Where a layer sent its tokens."""

    experts: Tensor  # [T, K] int64
    gates: Tensor  # [T, K], sums to 1 over K
    order: Tensor  # [N] the routed rows t * K + k, sorted by expert
    counts: list[int]  # [E] rows of each expert
    balance: Tensor  # load-balancing loss, 1 where routing is uniform

    @property
    def tokens(self) -> Tensor:
        """Token [N] of each sorted row."""
        return self.order // self.experts.shape[1]

    def unsort(self, y: Tensor) -> Tensor:
        """Sorted rows [N, D] by token and slot [T, K, D]."""
        return y.index_select(0, self.order.argsort()).view(*self.experts.shape, -1)

    def combine(self, y: Tensor) -> Tensor:
        """Gate-weighted sum [T, D] of sorted expert outputs [N, D]."""
        return (self.unsort(y) * self.gates[:, :, None]).sum(dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) on x [B, heads, S, d], cos and sin [S, d/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal multi-head attention with rotary positions."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.out = nn.Linear(config.d_model, config.d_model, bias=False)
        half = config.d_model // config.heads // 2
        angle = torch.arange(config.context)[:, None] * 10000.0 ** -(torch.arange(half) / half)  # [S, d/2]
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] to [B, S, D]."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # [B, heads, S, d]
        cos, sin = self.cos[:length], self.sin[:length]
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return out


class MixtureLayer(nn.Module):
    """Router and float experts: y = sum over the top k experts of gate * fc2(relu(fc1(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, D, H = config.experts, config.d_model, config.d_hidden
        self.top_k = config.top_k
        self.router = nn.Linear(D, E, bias=False)
        self.w1 = nn.Parameter(torch.randn(E, H, D) * D**-0.5)
        self.w2 = nn.Parameter(torch.randn(E, D, H) * (2 * config.layers * H) ** -0.5)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Top-k softmax routing of x [T, D]: gates [T, K] summing to 1, experts [T, K], router probabilities [T, E]."""
        chance = self.router(x).softmax(dim=-1)
        gates, experts = chance.topk(self.top_k, dim=-1)
        return gates / gates.sum(dim=-1, keepdim=True), experts, chance

    def route(self, x: Tensor) -> Routing:
        return self.sort(*self.choose(x))

    def sort(self, gates: Tensor, experts: Tensor, chance: Tensor) -> Routing:
        """Where tokens go that have chosen so; see `choose`."""
        E = chance.shape[1]
        chosen = experts.reshape(-1).bincount(minlength=E)  # [E]
        balance = E * (chosen / experts.numel() * chance.mean(dim=0)).sum()
        order = experts.reshape(-1).argsort(stable=True)
        return Routing(experts, gates, order, chosen.tolist(), balance)

    def float_experts(self, x: Tensor, counts: list[int]) -> Tensor:
        return apply_experts(x, counts, self.w1, self.w2)

    def forward(self, x: Tensor, experts: Experts | None = None) -> tuple[Tensor, Routing]:
        """[T, D] to [T, D]; `experts` stands in for the float experts."""
        routing = self.route(x)
        y = (experts or self.float_experts)(x.index_select(0, routing.tokens), routing.counts)
        return routing.combine(y), routing


def apply_experts(x: Tensor, counts: list[int], w1: Tensor, w2: Tensor) -> Tensor:
    """Rows [N, D] sorted by expert through weights w1 [E, H, D], w2 [E, D, H]."""
    return grouped(grouped(x, counts, w1).relu(), counts, w2)


def grouped(x: Tensor, counts: list[int], weights: Tensor) -> Tensor:
    """Rows [N, I] sorted by expert times each expert's weights [E, O, I].

    On a GPU as one batched product over rows padded to the busiest expert's: launching E small ones takes longer.
    """
    if not x.is_cuda:
        return torch.cat([F.linear(part, w) for part, w in zip(x.split(counts), weights, strict=True)])
    longest, rows = max(counts), torch.tensor(counts, device=x.device)
    gap = torch.arange(len(counts), device=x.device) * longest - (rows.cumsum(0) - rows)  # [E]
    place = torch.arange(len(x), device=x.device) + gap.repeat_interleave(rows, output_size=len(x))  # [N]
    padded = x.new_zeros(len(counts) * longest, x.shape[1]).index_copy(0, place, x)
    y = torch.bmm(padded.view(len(counts), longest, -1), weights.transpose(1, 2))  # [E, longest, O]
    return y.flatten(0, 1).index_select(0, place)


class Block(nn.Module):
    """Attention, then a mixture layer, each on the normalised input and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model, bias=False)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.d_model, bias=False)
        self.mixture = MixtureLayer(config)

    def attend(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The stream after attention [B, S, D] and the mixture layer's input [T, D]."""
        x = x + self.attention(self.norm1(x))
        return x, self.norm2(x).flatten(0, 1)

    def forward(self, x: Tensor, experts: Experts | None = None) -> tuple[Tensor, Routing]:
        x, inputs = self.attend(x)
        y, routing = self.mixture(inputs, experts)
        return x + y.view_as(x), routing


class Transformer(nn.Module):
    """Decoder-only language model; the output layer shares the embedding's weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def layers(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def head(self, x: Tensor) -> Tensor:
        """Logits [..., V] of the last block's stream [..., D]."""
        return F.linear(self.norm(x), self.embedding.weight)

    def hidden(self, tokens: Tensor, experts: Sequence[Experts] | None = None) -> tuple[Tensor, list[Routing]]:
        """Normalised stream [B, S, D] after the last block for tokens [B, S], and each layer's routing."""
        x, routings = self._blocks(tokens, experts)
        return self.norm(x), routings

    def forward(self, tokens: Tensor, experts: Sequence[Experts] | None = None) -> tuple[Tensor, list[Routing]]:
        """Logits [B, S, V] of tokens [B, S], and each layer's routing. `experts`: one function a layer."""
        x, routings = self._blocks(tokens, experts)
        return self.head(x), routings

    def _blocks(self, tokens: Tensor, experts: Sequence[Experts] | None) -> tuple[Tensor, list[Routing]]:
        x = self.embedding(tokens)
        routings = []
        for index, block in enumerate(self.layers):
            x, routing = block(x, experts[index] if experts else None)
            routings.append(routing)
        return x, routings


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats of logits [..., V] for targets [...], one value a token, in float32."""
    return F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none").view_as(targets)
