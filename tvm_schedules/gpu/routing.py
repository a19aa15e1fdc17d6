# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (Triton kernels: their arguments are types of Triton's own language)
"""The router and the plan that the expert kernels follow, in one launch.

A plan lists the experts that got any token: its slots. There are min(E, T K) of them; those at the end may be empty.
A slot holds all that a program must know of its expert. Nothing of the plan is known to the host, so a layer can be
one CUDA graph.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def route(
    x,  # [T, D] bfloat16
    router,  # [E, D] bfloat16
    partial,  # [programs, T, E] float32, scratch
    arrived,  # [1] int32, 0; left at 0
    table,  # [E, 5] int64: bits; first word and first scale of the first matrix; of the second
    up_slots,  # [S, 3] int64, out: bits (0 where the slot is empty), first word, first scale
    down_slots,  # [S, 3] int64, out
    slot_pairs,  # [S, T] int32, out: the slot's pairs, then -1
    weight,  # [T K] float32, out: by pair
    tokens,
    experts,
    slots,
    depth,  # D
    TOP_K: tl.constexpr,
    TOKENS: tl.constexpr,  # power of two, at least tokens
    EXPERTS: tl.constexpr,  # power of two, at least experts and 16
    SHARE: tl.constexpr,  # of the depth, for one program
    RENORMALISE: tl.constexpr,  # the chosen experts' weights sum to 1
    ASSEMBLY: tl.constexpr,
):
    """Router's product, softmax, top-k and plan of a batch. Of equal logits the lower expert wins.

    Grid: (depth / SHARE,). Each program multiplies its share; the last to finish adds the shares and makes the plan.
    """
    if ASSEMBLY:
        gdc_wait()
        gdc_launch_dependents()
    t = tl.arange(0, TOKENS)
    e = tl.arange(0, EXPERTS)
    k = tl.program_id(0) * SHARE + tl.arange(0, SHARE)
    mine = tl.load(x + t[:, None] * depth + k[None, :], mask=(t < tokens)[:, None] & (k < depth)[None, :], other=0.0)
    rows = tl.load(
        router + e[:, None] * depth + k[None, :], mask=(e < experts)[:, None] & (k < depth)[None, :], other=0.0
    )
    if not ASSEMBLY:  # the interpreter multiplies no bfloat16
        mine, rows = mine.to(tl.float32), rows.to(tl.float32)
    real = (t < tokens)[:, None] & (e < experts)[None, :]
    out = t[:, None] * experts + e[None, :]
    tl.store(partial + tl.program_id(0) * tokens * experts + out, tl.dot(mine, tl.trans(rows)), mask=real)
    tl.debug_barrier()  # this program's share is written before it reports
    if tl.atomic_add(arrived, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.debug_barrier()
        score = tl.zeros((TOKENS, EXPERTS), tl.float32)
        for p in range(0, tl.num_programs(0)):
            score += tl.load(partial + p * tokens * experts + out, mask=real, other=0.0, cache_modifier=".cg")
        _plan(
            score,
            table,
            up_slots,
            down_slots,
            slot_pairs,
            weight,
            tokens,
            experts,
            slots,
            TOP_K,
            TOKENS,
            EXPERTS,
            RENORMALISE,
        )
        tl.store(arrived, 0)


@triton.jit
def _plan(
    score,  # [TOKENS, EXPERTS] float32
    table,
    up_slots,
    down_slots,
    slot_pairs,
    weight,
    tokens,
    experts,
    slots,
    TOP_K: tl.constexpr,
    TOKENS: tl.constexpr,
    EXPERTS: tl.constexpr,
    RENORMALISE: tl.constexpr,
):
    t = tl.arange(0, TOKENS)
    e = tl.arange(0, EXPERTS)
    real = (t < tokens)[:, None] & (e < experts)[None, :]
    left = tl.where((e < experts)[None, :], score, float("-inf"))
    power = tl.exp(left - tl.max(left, axis=1)[:, None])
    taken = tl.zeros((TOKENS, EXPERTS), tl.int32)
    for _ in tl.static_range(TOP_K):
        hit = e[None, :] == tl.argmax(left, axis=1)[:, None]
        taken = tl.where(hit, 1, taken)
        left = tl.where(hit, float("-inf"), left)
    kept = tl.where(taken == 1, power, 0.0)
    norm = tl.sum(kept, axis=1) if RENORMALISE else tl.sum(power, axis=1)
    taken = tl.where(real, taken, 0)
    choice = tl.cumsum(taken, axis=1) - taken  # j: a token's experts in ascending order
    pair = t[:, None] * TOP_K + choice
    tl.store(weight + pair, kept / norm[:, None], mask=taken == 1)

    active = (tl.sum(taken, axis=0) > 0).to(tl.int32)  # [EXPERTS]
    slot = tl.cumsum(active, axis=0) - active
    used = tl.sum(active, axis=0)
    empty = (e >= used) & (e < slots)
    bits = tl.load(table + e * 5, mask=active == 1)
    for field in tl.static_range(2):
        tl.store(
            up_slots + slot * 3 + 1 + field, tl.load(table + e * 5 + 1 + field, mask=active == 1), mask=active == 1
        )
        tl.store(
            down_slots + slot * 3 + 1 + field, tl.load(table + e * 5 + 3 + field, mask=active == 1), mask=active == 1
        )
    tl.store(up_slots + slot * 3, bits, mask=active == 1)
    tl.store(down_slots + slot * 3, bits, mask=active == 1)
    tl.store(up_slots + e * 3, tl.zeros((EXPERTS,), tl.int64), mask=empty)
    tl.store(down_slots + e * 3, tl.zeros((EXPERTS,), tl.int64), mask=empty)

    gone = (e < slots)[None, :] & (t < tokens)[:, None]
    tl.store(slot_pairs + e[None, :] * tokens + t[:, None], tl.full((TOKENS, EXPERTS), -1, tl.int32), mask=gone)
    tl.debug_barrier()  # the pairs go on top of the -1
    place = slot[None, :] * tokens + tl.cumsum(taken, axis=0) - taken  # [TOKENS, EXPERTS]
    tl.store(slot_pairs + place, pair, mask=taken == 1)
