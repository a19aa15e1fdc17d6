"""The libraries that `gpu_experts.py` times beside wattbit's GPU kernels, each as a list of calls on rotated weights.

gemlite is wanted as an importable package; torch's own paths need nothing more. A peer that can't run is left out, and
says why: `prepare` returns its reason instead.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear

Call = Callable[[], object]
GROUP = 128
ROTATED_BYTES = 3e8  # five times the card's L2 cache
DEVICE = "cuda"


def copies(size: float) -> int:
    """How many weight sets of so many bytes the L2 cache can't hold."""
    return max(2, min(256, round(ROTATED_BYTES / size)))


def bf16(rows: int, depth: int, x: Tensor) -> list[Call]:
    weights = [_random(rows, depth) for _ in range(copies(2 * rows * depth))]
    return [partial(linear, x, weight) for weight in weights]


def torch_int8(rows: int, depth: int, x: Tensor) -> list[Call]:
    """Weight-only int8, one scale a row: torch.compile of a cast, a product and a scale, as gpt-fast writes it."""

    def forward(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
        return linear(x, codes.to(torch.bfloat16)) * scale

    compiled = torch.compile(forward, dynamic=False)
    scale = _random(1, rows)[0]
    codes = [_codes(rows, depth, 8) for _ in range(copies(rows * depth))]
    return [partial(compiled, x, own, scale) for own in codes]


def torch_int4(rows: int, depth: int, x: Tensor) -> list[Call]:
    """Weight-only int4 in groups: torch's tinygemm kernel."""
    scales = torch.rand(depth // GROUP, rows, 2, device=DEVICE).to(torch.bfloat16)
    calls: list[Call] = []
    for _ in range(copies(rows * depth / 2)):
        nibbles = torch.randint(0, 256, (rows, depth // 2), dtype=torch.uint8, device=DEVICE)
        packed = torch.ops.aten._convert_weight_to_int4pack(nibbles, 8)
        calls.append(partial(torch.ops.aten._weight_int4pack_mm, x, packed, GROUP, scales))
    return calls


def gemlite(rows: int, depth: int, x: Tensor, bits: int) -> list[Call]:
    """Weight-only at 2, 4 or 8 bits in groups, autotuned by itself at its first call."""
    from gemlite.helper import A16Wn

    calls: list[Call] = []
    for _ in range(copies(rows * depth * bits / 8)):
        codes = torch.randint(0, 2**bits, (rows, depth), dtype=torch.uint8, device=DEVICE)
        scales = torch.rand(rows * depth // GROUP, 1, device=DEVICE).to(torch.bfloat16)
        zeros = torch.full_like(scales, 2 ** (bits - 1))
        layer = A16Wn(device=DEVICE, dtype=torch.bfloat16).from_weights(codes, scales, zeros, bits, GROUP)
        calls.append(partial(layer, x))
    return calls


def grouped(experts: int, rows: int, depth: int, counts: list[int]) -> list[Call]:
    """torch's bfloat16 grouped product: expert e multiplies counts[e] tokens; experts take turns between calls."""
    weights = torch.randn(experts, rows, depth, device=DEVICE, dtype=torch.bfloat16).mul_(0.02)
    x = _random(sum(counts), depth)
    calls: list[Call] = []
    for shift in range(0, experts, max(1, sum(1 for count in counts if count))):
        ends = torch.tensor(counts[-shift:] + counts[:-shift], device=DEVICE).cumsum(0).to(torch.int32)
        calls.append(partial(torch._grouped_mm, x, weights.transpose(1, 2), ends))
    return calls


def prepare(make: Callable[[], list[Call]]) -> list[Call] | str:
    """The peer's calls after one warm call each, or why it can't run here."""
    try:
        calls = make()
        for call in calls:
            call()
        torch.cuda.synchronize()
        return calls
    except (ImportError, RuntimeError, NotImplementedError, AssertionError, AttributeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else 'no message'}"


def _random(rows: int, depth: int) -> Tensor:
    return torch.randn(rows, depth, device=DEVICE).mul_(0.02).to(torch.bfloat16)


def _codes(rows: int, depth: int, bits: int) -> Tensor:
    return torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (rows, depth), dtype=torch.int8, device=DEVICE)
