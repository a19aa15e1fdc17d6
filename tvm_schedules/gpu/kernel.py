# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (Triton kernels: their arguments are types of Triton's own language)
"""The two launches of a mixture's experts, each over experts of any mixture of widths.

A program takes one tile of rows of one expert that has tokens (a slot of the plan, see `routing`), and all of that
expert's tokens, TOKENS at a time: weights are read once. It branches on the expert's width, peels the packed words
(see `packing`, `decode`) in registers and multiplies on tensor cores, accumulating in float32.

`up` computes the hidden activations, SwiGLU or ReLU. `down` multiplies by the second matrix and by the router's
weights, and sums over each token's experts: every program leaves float32 partial sums, and the last one of a row tile
to finish adds them in a fixed order, so results do not depend on who is last.

What makes it fast beside the decoding: all that a program must look up is one load away from its slot's number, and
launches overlap (programmatic dependent launch): a launch's programs take their places while the one before ends.

Letters: T tokens, K experts a token, pair t K + j is token t's j-th choice, S slots, D model width, H hidden width.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from wattbit.tvm_schedules.gpu.decode import codes


@triton.jit
def _tile(
    words,  # the expert's packed matrix, int16
    scales,  # its scales: float32 [rows], or float16 [groups, rows]
    inputs,  # [TOKENS] pointers to the tokens' activations, bfloat16 [depth]
    present,  # [TOKENS] whether there is such a token
    r,  # [ROWS] rows
    rows,
    depth,
    split,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Scaled products [ROWS, TOKENS] over this split's share of the depth."""
    FIELDS: tl.constexpr = 16 if BITS == 3 else 8
    PLANES: tl.constexpr = BITS * FIELDS // 16
    UNIT: tl.constexpr = GROUP if GROUP > 0 else 16
    C = tl.cdiv(depth, FIELDS * UNIT) * UNIT
    share = tl.cdiv(tl.cdiv(C, COLUMNS), SPLITS) * COLUMNS
    c = tl.arange(0, COLUMNS)
    ROW_TILE: tl.constexpr = 16
    block = tl.multiple_of(tl.where(C % 64 == 0, 64, C), 16)  # the layout's; COLUMNS divides it, or it is all of C
    tile = (r // ROW_TILE).to(tl.int64) * (ROW_TILE * PLANES * C) + (r % ROW_TILE) * (PLANES * block)
    row = words + tl.multiple_of(tile, 16)[:, None] + c[None, :]
    even = tl.zeros((ROWS, TOKENS), tl.float32)  # two sums: a tensor core's next product waits for its last
    odd = tl.zeros((ROWS, TOKENS), tl.float32)
    for c0 in tl.range(split * share, tl.minimum((split + 1) * share, C), COLUMNS, num_stages=STAGES):
        inside = c0 + c < C
        word = row + tl.multiple_of((c0 // block) * (ROW_TILE * PLANES * block) + c0 % block, 16)
        if WHOLE:
            w0 = tl.load(word)
            w1 = tl.load(word + block) if PLANES > 1 else w0
            w2 = tl.load(word + 2 * block) if PLANES > 2 else w0
            w3 = tl.load(word + 3 * block) if PLANES > 3 else w0
        else:
            w0 = tl.load(word, mask=inside[None, :], other=0)
            w1 = tl.load(word + block, mask=inside[None, :], other=0) if PLANES > 1 else w0
            w2 = tl.load(word + 2 * block, mask=inside[None, :], other=0) if PLANES > 2 else w0
            w3 = tl.load(word + 3 * block, mask=inside[None, :], other=0) if PLANES > 3 else w0
        for f in tl.static_range(FIELDS):
            k = f * C + c0 + c
            if WHOLE:
                x = tl.load(inputs[None, :] + k[:, None], mask=present[None, :], other=0.0)
            else:
                there = (inside & (k < depth))[:, None] & present[None, :]
                x = tl.load(inputs[None, :] + k[:, None], mask=there, other=0.0)
            w = codes(w0, w1, w2, w3, f, BITS, ASSEMBLY)
            if not ASSEMBLY:
                x = x.to(tl.float32)
            if GROUP > 0:
                scale = tl.load(scales + ((f * C + c0) // GROUP) * rows + r).to(tl.float32)
                even += tl.dot(w, x) * scale[:, None]
            elif f % 2 == 0:
                even = tl.dot(w, x, even)
            else:
                odd = tl.dot(w, x, odd)
    total = even + odd
    if BITS == 2:
        total = total * 0.5
    if GROUP == 0:
        total = total * tl.load(scales + r)[:, None]
    return total


@triton.jit
def _any_width(
    words,
    scales,
    slot,  # [3] int64: the expert's bits, its first word, its first scale
    inputs,
    present,
    r,
    rows,
    depth,
    split,
    WIDTHS: tl.constexpr,  # bit b: some expert may have b bits
    GROUP: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    bits = tl.load(slot)
    words += tl.multiple_of(tl.load(slot + 1), 16)
    scales += tl.load(slot + 2)
    total = tl.zeros((ROWS, TOKENS), tl.float32)
    for width in tl.static_range(2, 9):
        if WIDTHS & (1 << width):  # noqa: SIM102 - this is decided by the compiler, the next on the card
            if bits == width:
                total = _tile(
                    words,
                    scales,
                    inputs,
                    present,
                    r,
                    rows,
                    depth,
                    split,
                    width,
                    GROUP,
                    SPLITS,
                    ROWS,
                    TOKENS,
                    COLUMNS if width == 2 or width == 4 else WIDE,
                    STAGES,
                    WHOLE,
                    ASSEMBLY,
                )
    return total


@triton.jit
def up(
    x,  # [T, D] bfloat16
    hidden,  # [T K, H] bfloat16, out: by pair
    words,
    scales,
    slots,  # [S, 3] int64: bits (0 where the slot is empty), first word, first scale
    slot_pairs,  # [S, T] int32: the slot's pairs, then -1
    tokens,  # T
    rows,  # H, or 2 H for SwiGLU: gate and up rows take turns
    depth,  # D
    TOP_K: tl.constexpr,
    SWIGLU: tl.constexpr,
    WIDTHS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Hidden activations of every pair. Grid: (row tiles, slots)."""
    if ASSEMBLY:
        gdc_wait()
        gdc_launch_dependents()
    slot = tl.program_id(1)
    first = tl.program_id(0) * ROWS
    r = tl.minimum(first + tl.arange(0, ROWS), rows - 1)
    for t0 in range(0, tokens, TOKENS):
        t = t0 + tl.arange(0, TOKENS)
        pair = tl.load(slot_pairs + slot * tokens + t, mask=t < tokens, other=-1)
        present = pair >= 0
        if t0 == 0 or tl.max(pair, axis=0) >= 0:
            total = _any_width(
                words,
                scales,
                slots + slot * 3,
                x + (tl.maximum(pair, 0) // TOP_K).to(tl.int64) * depth,
                present,
                r,
                rows,
                depth,
                0,
                WIDTHS,
                GROUP,
                1,
                ROWS,
                TOKENS,
                COLUMNS,
                WIDE,
                STAGES,
                WHOLE,
                ASSEMBLY,
            )
            if SWIGLU:
                gate, linear = tl.split(tl.permute(tl.reshape(total, (ROWS // 2, 2, TOKENS)), (0, 2, 1)))
                h = first // 2 + tl.arange(0, ROWS // 2)
                value = gate * tl.sigmoid(gate) * linear
                width = rows // 2
            else:
                h = first + tl.arange(0, ROWS)
                value = tl.maximum(total, 0.0)
                width = rows
            out = hidden + pair[None, :].to(tl.int64) * width + h[:, None]
            tl.store(out, value.to(tl.bfloat16), mask=present[None, :] & (h < width)[:, None])


@triton.jit
def down(
    hidden,  # [T K, H] bfloat16, by pair
    y,  # [T, D] bfloat16, out
    partial,  # [SPLITS, T K, D] float32, scratch, by pair
    arrived,  # [row tiles] int32, 0; left at 0
    words,
    scales,
    slots,
    slot_pairs,
    weight,  # [T K] float32, by pair
    tokens,  # T
    rows,  # D
    depth,  # H
    TOP_K: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDTHS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WIDE: tl.constexpr,
    STAGES: tl.constexpr,
    WHOLE: tl.constexpr,
    ASSEMBLY: tl.constexpr,
):
    """Weighted sums over each token's experts. Grid: (row tiles, slots, SPLITS)."""
    slot, split = tl.program_id(1), tl.program_id(2)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    if ASSEMBLY:
        gdc_wait()
        gdc_launch_dependents()
    inside = r < rows
    for t0 in range(0, tokens, TOKENS):
        t = t0 + tl.arange(0, TOKENS)
        pair = tl.load(slot_pairs + slot * tokens + t, mask=t < tokens, other=-1)
        present = pair >= 0
        if t0 == 0 or tl.max(pair, axis=0) >= 0:
            total = _any_width(
                words,
                scales,
                slots + slot * 3,
                hidden + tl.maximum(pair, 0).to(tl.int64) * depth,
                present,
                tl.minimum(r, rows - 1),
                rows,
                depth,
                split,
                WIDTHS,
                GROUP,
                SPLITS,
                ROWS,
                TOKENS,
                COLUMNS,
                WIDE,
                STAGES,
                WHOLE,
                ASSEMBLY,
            )
            total = total * tl.load(weight + pair, mask=present, other=0.0)[None, :]
            out = partial + (split * tokens * TOP_K + pair[None, :]).to(tl.int64) * rows + r[:, None]
            tl.store(out, total, mask=present[None, :] & inside[:, None])
    tl.debug_barrier()  # this program's partial sums are written before it reports
    programs = tl.num_programs(1) * SPLITS
    if tl.atomic_add(arrived + tl.program_id(0), 1, sem="acq_rel") == programs - 1:
        tl.debug_barrier()
        for t0 in range(0, tokens, TOKENS):
            t = t0 + tl.arange(0, TOKENS)
            there = (t < tokens)[:, None] & inside[None, :]
            total = tl.zeros((TOKENS, ROWS), tl.float32)
            for j in tl.static_range(TOP_K):
                for s in tl.static_range(SPLITS):
                    part = partial + ((s * tokens + t[:, None]) * TOP_K + j).to(tl.int64) * rows + r[None, :]
                    total += tl.load(part, mask=there, other=0.0, cache_modifier=".cg")
            tl.store(y + t[:, None].to(tl.int64) * rows + r[None, :], total.to(tl.bfloat16), mask=there)
        tl.store(arrived + tl.program_id(0), 0)
