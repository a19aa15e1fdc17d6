"""What a deployed model answers, token by token: the reference of the runtime on boards.

The deployed arithmetic of what is not an integer is IEEE double: embedding, norms, attention, router and logits, on
float32 weights, with keys and values kept as float32. An expert reads its input rounded to float32. So two
implementations differ by some 1e-16, and a token or a rounded activation differs only where a value lies that close to
a tie: practically never. Training and perplexity run the same model in float32.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.models.learner import MoELearner
from wattbit.models.network import Attention, rotate
from wattbit.models.quant import brevitas_experts
from wattbit.plan import Allocation

Logits = Callable[[Tensor], Tensor]
"""Logits [S, V] in double of tokens [S]."""


def reference(learner: MoELearner, allocation: Allocation) -> Logits:
    """The learner's model with every expert at its precision, through Brevitas, in the deployed arithmetic."""
    network = learner.network
    modules = {e: learner.expert(e, allocation.precision(e)) for e in learner.config.expert_ids}
    layers = [{e.expert: m for e, m in modules.items() if e.layer == i} for i in range(learner.config.layers)]

    @torch.no_grad()
    def logits(tokens: Tensor) -> Tensor:
        x = network.embedding.weight[tokens].double()  # [S, D]
        for block, experts in zip(network.layers, layers, strict=True):
            x = x + attend(block.attention, layer_norm(x, block.norm1))
            inputs = layer_norm(x, block.norm2)
            chance = F.linear(inputs, block.mixture.router.weight.double()).softmax(dim=-1)
            gates, chosen = chance.topk(block.mixture.top_k, dim=-1)
            routing = block.mixture.sort(gates / gates.sum(dim=-1, keepdim=True), chosen, chance)
            y = brevitas_experts(experts)(inputs.float().index_select(0, routing.tokens), routing.counts)
            x = x + routing.combine(y.double())
        return F.linear(layer_norm(x, network.norm), network.embedding.weight.double())

    return logits


def layer_norm(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight.double(), eps=norm.eps)


def attend(attention: Attention, x: Tensor) -> Tensor:
    """Causal attention in double on x [S, D]."""
    length, width = x.shape
    qkv = F.linear(x, attention.qkv.weight.double()).view(length, 3, attention.heads, -1)
    q, k, v = qkv.permute(1, 2, 0, 3)  # [heads, S, d] each
    cos, sin = attention.cos[:length].double(), attention.sin[:length].double()
    y = causal(rotate(q, cos, sin), rotate(k, cos, sin), v)
    return F.linear(y.transpose(0, 1).reshape(length, width), attention.out.weight.double())


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [heads, S, d] in double over keys and values that were kept as float32."""
    return F.scaled_dot_product_attention(q, k.float().double(), v.float().double(), is_causal=True)


def greedy(logits: Logits, prompt: Sequence[int], count: int) -> list[int]:
    """The prompt's continuation by `count` tokens, each the likeliest."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(logits(torch.tensor(tokens))[-1].argmax()))
    return tokens[len(prompt) :]
