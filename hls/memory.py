"""What an engine's memories hold: the weights and the requant words of its experts, as words of $readmemh files."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import Int8, Int32
from wattbit.files import write_text


def weight_words(weights: Int8, pe: int, simd: int, bits: int) -> list[str]:
    """Words [MH/PE * MW/SIMD] of a matrix [MH, MW] in the order in which FINN's MVAU reads them.

    A word holds PE rows of SIMD weights each, row 0 and weight 0 in the low bits; the words run over the columns first.
    """
    rows, columns = weights.shape
    folded = weights.reshape(rows // pe, pe, columns // simd, simd).transpose(0, 2, 1, 3)  # [NF, SF, PE, SIMD]
    return _hexadecimal(folded.reshape(-1, pe * simd).astype(np.int64), bits)


def requant_words(multiplier: Int32, shift: int, shift_min: int, pe: int, multiplier_bits: int, bits: int) -> list[str]:
    """Words [C/PE] of multipliers [C]: PE lanes of `bits` bits {shift - shift_min, multiplier}, lane 0 lowest."""
    lanes = multiplier.astype(np.int64) + ((shift - shift_min) << multiplier_bits)  # [C]
    return _hexadecimal(lanes.reshape(-1, pe), bits)


def write_memory(path: Path, sets: list[list[str]]) -> None:
    write_text(path, "\n".join(word for words in sets for word in words) + "\n")


def _hexadecimal(values: NDArray[np.int64], bits: int) -> list[str]:
    """Values [N, L] as N words of L fields of `bits` bits, field 0 lowest, two's complement."""
    fields = (values[:, :, None] >> np.arange(bits)) & 1  # [N, L, bits]
    packed = np.packbits(fields.reshape(len(values), -1).astype(np.uint8), axis=1, bitorder="little")
    digits = -(-values.shape[1] * bits // 4)
    return [row[::-1].tobytes().hex()[-digits:] for row in packed]
