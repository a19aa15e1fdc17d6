"""The packed experts of one MoE layer in the card's memory, each at one or several widths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from wattbit.arith import ExpertInts, Int8
from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu.device import room_for
from wattbit.tvm_schedules.gpu.packing import ROW_TILE, GpuLayout, pack, tiles

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Matrix:
    """One weight matrix: codes [rows, depth] and their scales, [rows], or [rows, groups] of `group` codes each."""

    codes: Int8
    scales: Floats
    bits: int
    group: int = 0

    def __post_init__(self) -> None:
        rows, depth = self.codes.shape
        wanted = (rows, -(-depth // self.group)) if self.group else (rows,)
        if self.scales.shape != wanted:
            raise WattbitError(
                f"a matrix {rows}x{depth} with group {self.group} has scales {wanted}, not {self.scales.shape}"
            )

    @property
    def layout(self) -> GpuLayout:
        return GpuLayout(self.bits, self.codes.shape[1], self.group)

    def real(self) -> NDArray[np.float64]:
        """The real weights [rows, depth] that the codes stand for, as the kernels see the scales."""
        if not self.group:
            return self.codes * self.scales.astype(np.float64)[:, None]
        scales = self.scales.astype(np.float16).astype(np.float64)
        return self.codes * np.repeat(scales, self.group, axis=1)[:, : self.codes.shape[1]]

    def device_scales(self) -> NDArray[np.float32] | NDArray[np.float16]:
        """float32 [rows], or float16 [row tile, group, row % 8, row / 8 % 8]."""
        if not self.group:
            return self.scales.astype(np.float32)
        padded = np.zeros((tiles(len(self.scales)) * ROW_TILE, self.layout.groups), np.float16)
        padded[: len(self.scales)] = self.scales
        return np.ascontiguousarray(padded.reshape(-1, 8, 8, self.layout.groups).transpose(0, 3, 2, 1))


@dataclass(frozen=True, eq=False)
class Expert:
    """One expert: `first` [H, D] (ReLU), or [2 H, D] with gate and up rows in turn (SwiGLU), and `second` [D, H]."""

    first: Matrix
    second: Matrix

    @classmethod
    def of_ints(cls, ints: ExpertInts) -> Self:
        """A ReLU expert with the integer codes and scales of an export; activations stay real."""
        scale1 = ints.m1 * np.float32(2.0 ** (ints.h_exp - ints.x_exp - ints.shift1))
        scale2 = ints.m2 * np.float32(2.0 ** (ints.y_exp - ints.h_exp - ints.shift2))
        bits = ints.precision.weight_bits
        return cls(Matrix(ints.w1, scale1, bits), Matrix(ints.w2, scale2, bits))

    @classmethod
    def gated(cls, gate: Matrix, linear: Matrix, second: Matrix) -> Self:
        """A SwiGLU expert of gate and up projections [H, D] of one width."""
        rows, depth = gate.codes.shape
        codes = np.stack([gate.codes, linear.codes], axis=1).reshape(2 * rows, depth)
        scales = np.stack([gate.scales, linear.scales], axis=1).reshape(2 * rows, *gate.scales.shape[1:])
        return cls(Matrix(codes, scales, gate.bits, gate.group), second)


@dataclass(frozen=True)
class Shape:
    """An MoE layer's experts: E experts of `d_model` and `d_hidden`, SwiGLU or ReLU. group: see `GpuLayout`."""

    experts: int
    d_model: int
    d_hidden: int
    swiglu: bool = True
    group: int = 0

    @property
    def up(self) -> tuple[int, int]:
        """Rows and depth of an expert's first matrix."""
        return self.d_hidden * (2 if self.swiglu else 1), self.d_model

    @property
    def down(self) -> tuple[int, int]:
        return self.d_model, self.d_hidden

    def weight_bytes(self, bits: int) -> int:
        """Packed bytes of one expert, scales included."""
        return sum(matrix_bytes(rows, GpuLayout(bits, depth, self.group)) for rows, depth in (self.up, self.down))


def matrix_bytes(rows: int, layout: GpuLayout) -> int:
    """Bytes of a packed matrix and its scales in the card's memory."""
    return 4 * layout.words(rows) + layout.scales(rows) * (2 if layout.group else 4)


class Store:
    """One of an expert's two matrices, for all experts and all their widths: words, scales and where each begins."""

    def __init__(self, rows: int, depth: int, group: int, device: torch.device) -> None:
        self.rows, self.depth, self.group = rows, depth, group
        self._device = device
        self.words = torch.empty(0, dtype=torch.int32)
        self.scales = torch.empty(0)
        self.start: dict[tuple[int, int], tuple[int, int]] = {}  # (expert, bits): first word, first scale

    def fill(self, matrices: Mapping[tuple[int, int], Matrix]) -> None:
        words, scales = [], []
        word = scale = 0
        for key, matrix in matrices.items():
            if matrix.codes.shape != (self.rows, self.depth) or matrix.group != self.group or matrix.bits != key[1]:
                raise WattbitError(
                    f"expert {key[0]} is {matrix.codes.shape} at {matrix.bits} bits, group {matrix.group};"
                    f" the layer has no kernel for it beside {(self.rows, self.depth)}, group {self.group}"
                )
            words.append(pack(matrix.codes, matrix.layout))
            scales.append(matrix.device_scales().ravel())
            self.start[key] = word, scale
            word, scale = word + words[-1].size, scale + scales[-1].size
        self.words = torch.from_numpy(np.concatenate(words)).to(self._device)
        self.scales = torch.from_numpy(np.concatenate(scales)).to(self._device)

    def fill_random(self, experts: int, widths: Sequence[int], seed: int) -> None:
        """Random words, for timing: the kernels take every bit pattern, also the code below the narrow range."""
        word = scale = 0
        for expert in range(experts):
            for bits in widths:
                layout = GpuLayout(bits, self.depth, self.group)
                self.start[expert, bits] = word, scale
                word, scale = word + layout.words(self.rows), scale + layout.scales(self.rows)
        generator = torch.Generator(self._device).manual_seed(seed)
        with room_for(f"{experts} experts at {len(widths)} widths", 4 * word):
            self.words = torch.randint(
                -(2**31), 2**31, (word,), dtype=torch.int32, device=self._device, generator=generator
            )
        dtype = torch.float16 if self.group else torch.float32
        self.scales = torch.rand(scale, device=self._device, generator=generator).mul_(2e-3).to(dtype)


class Bank:
    """The experts of one layer on a device. `choose` sets every expert's width among those it is stored at."""

    def __init__(self, shape: Shape, device: torch.device) -> None:
        self.shape = shape
        self.device = device
        self.up = Store(*shape.up, shape.group, device)
        self.down = Store(*shape.down, shape.group, device)
        self.table = torch.zeros(shape.experts, 5, dtype=torch.int64, device=device)  # read by router.cu

    @classmethod
    def of(cls, shape: Shape, experts: Sequence[Expert], device: torch.device) -> Self:
        """A bank of these experts at their own widths."""
        bank = cls(shape, device)
        if len(experts) != shape.experts:
            raise WattbitError(f"the layer has {shape.experts} experts, not {len(experts)}")
        bank.up.fill({(e, expert.first.bits): expert.first for e, expert in enumerate(experts)})
        bank.down.fill({(e, expert.second.bits): expert.second for e, expert in enumerate(experts)})
        bank.choose([expert.first.bits for expert in experts])
        return bank

    @classmethod
    def random(cls, shape: Shape, widths: Sequence[int], device: torch.device, seed: int = 0) -> Self:
        """A bank of random experts, each at all of `widths`, for timing. WattbitError if the card can't hold them."""
        bank = cls(shape, device)
        bank.up.fill_random(shape.experts, widths, seed)
        bank.down.fill_random(shape.experts, widths, seed + 1)
        bank.choose([widths[0]] * shape.experts)
        return bank

    def view(self) -> Self:
        """A bank of the same weights with widths of its own."""
        other = type(self)(self.shape, self.device)
        other.up, other.down = self.up, self.down
        other.table.copy_(self.table)
        return other

    @property
    def widths(self) -> int:
        """The widths at hand, as a mask with bit b set for b bits."""
        return sum(1 << bits for bits in {bits for _, bits in self.up.start})

    def choose(self, bits: Sequence[int]) -> None:
        """Use these widths [E] from now on, also in graphs already captured."""
        missing = [(e, b) for e, b in enumerate(bits) if (e, b) not in self.up.start or (e, b) not in self.down.start]
        if missing or len(bits) != self.shape.experts:
            raise WattbitError(
                f"{len(bits)} widths for {self.shape.experts} experts; not stored are (expert, bits) {missing[:3]}"
            )
        rows = [(b, *self.up.start[e, b], *self.down.start[e, b]) for e, b in enumerate(bits)]
        self.table.copy_(torch.tensor(rows))
