# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False, disallow-incomplete-defs=False
# (Triton kernels: their arguments are types of Triton's own language)
"""Peels the fields off packed words, as Triton code: two codes an instruction, exact in bfloat16.

A register holds two 16-bit words. A field, shifted to the low bits of the mantissa of 128.0 (0x4300), is the number
128 + n exactly; one subtraction or multiply-add of packed bfloat16 then gives the signed code. No value is rounded.
In Triton's interpreter, which has no inline assembly, plain integer operations give the same numbers as float32.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _lines(f, bits):
    """PTX that makes two bfloat16 codes $0 of the words $1, $2, .. in registers t, u, c; m is 128.0 twice."""
    pick = "lop3.b32 {0}, {0}, {1}, {2}, 0xEA;"  # {0} = ({0} & {1}) | {2}
    if bits == 2:
        return f"shl.b32 t, $1, {2 * f}; and.b32 $0, t, 0xC000C000;"
    if bits == 3 and f == 15:
        low = f"shr.b32 t, $1, 15; {pick.format('t', '0x00010001', 'm')} shr.b32 u, $2, 14;"
        low += f"{pick.format('u', '0x00020002', 't')} shr.b32 t, $3, 13; {pick.format('t', '0x00040004', 'u')}"
        return f"{low} mov.b32 c, 0x43044304; sub.bf16x2 $0, t, c;"
    if bits == 3:
        word, place = f // 5 + 1, f % 5
        shifted = f"shr.b32 t, ${word}, {6 * (place // 2)};"
        if place % 2 == 0:
            return f"{shifted} {pick.format('t', '0x00070007', 'm')} mov.b32 c, 0x43044304; sub.bf16x2 $0, t, c;"
        scale = "mov.b32 u, 0x3E003E00; mov.b32 c, 0xC1A0C1A0; fma.rn.bf16x2 $0, t, u, c;"  # (128 + 8n) / 8 - 20
        return f"{shifted} {pick.format('t', '0x00380038', 'm')} {scale}"
    if bits == 8:  # the low seven bits less the sign bit: 128 + n - (256 or 128)
        halves = f"shr.b32 t, ${f // 2 + 1}, {8 * (f % 2)}; mov.b32 u, t; {pick.format('u', '0x00800080', 'm')}"
        return f"{halves} {pick.format('t', '0x007F007F', 'm')} sub.bf16x2 $0, t, u;"
    nibble = f"shr.b32 t, ${f // 4 + 1}, {4 * (f % 4)}; {pick.format('t', '0x000F000F', 'm')}"
    if bits == 4:
        return f"{nibble} mov.b32 c, 0x43084308; sub.bf16x2 $0, t, c;"
    move = f"shl.b32 u, $3, {4 - 2 * f};" if f < 2 else f"shr.b32 u, $3, {2 * f - 4};"
    return f"{nibble} {move} {pick.format('u', '0x00300030', 't')} mov.b32 c, 0x43204320; sub.bf16x2 $0, u, c;"


@triton.constexpr_function
def _ptx(f, bits):
    return "{ .reg .b32 t, u, c, m; mov.b32 m, 0x43004300; " + _lines(f, bits) + " }"


@triton.jit
def codes(w0, w1, w2, w3, f: tl.constexpr, BITS: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Field f of word planes w0 .. (int16, one shape; the unused ones repeat w0) as numbers: the codes, twice the
    codes for 2 bits."""
    if ASSEMBLY:
        code = tl.inline_asm_elementwise(
            _ptx(f, BITS), "=r,r,r,r,r", [w0, w1, w2, w3], dtype=tl.bfloat16, is_pure=True, pack=2
        )
    else:
        code = _plain(w0, w1, w2, w3, f, BITS)
    return code


@triton.jit
def _plain(w0, w1, w2, w3, f: tl.constexpr, BITS: tl.constexpr):
    if BITS == 2:
        part = (w0.to(tl.int32) >> (14 - 2 * f)) & 3
        code = (part & 1) * (2 - 2 * (part & 2))
    elif BITS == 3 and f == 15:
        spare = ((w0.to(tl.int32) >> 15) & 1) | ((w1.to(tl.int32) >> 14) & 2) | ((w2.to(tl.int32) >> 13) & 4)
        code = spare - 4
    elif BITS == 3:
        code = ((_pick(w0, w1, w2, w3, f // 5) >> (3 * (f % 5))) & 7) - 4
    elif BITS == 8:
        code = (((_pick(w0, w1, w2, w3, f // 2) >> (8 * (f % 2))) & 255) ^ 128) - 128
    else:
        nibble = (_pick(w0, w1, w2, w3, f // 4) >> (4 * (f % 4))) & 15
        high = ((w2.to(tl.int32) >> (2 * f)) & 3) << 4 if BITS == 6 else 0
        code = (nibble | high) - (1 << (BITS - 1))
    return code.to(tl.float32)


@triton.jit
def _pick(w0, w1, w2, w3, j: tl.constexpr):
    word = w0 if j == 0 else (w1 if j == 1 else (w2 if j == 2 else w3))
    return word.to(tl.int32)
