"""The one kernel template in TensorIR: products of packed weights and activations, of any width on any core.

The loops over tiles and runs of blocks are TensorIR loops of any length; what is within a run is written out by
ordinary Python loops as single assignments, so that sums stay in registers.
"""

from dataclasses import dataclass
from itertools import product
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from wattbit.tvm_schedules.cores import Core
from wattbit.tvm_schedules.layout import QUAD
from wattbit.tvm_schedules.multiply import MULTIPLIERS, Sums, Vector, intrinsic
from wattbit.tvm_schedules.unpack import codes_in_place, codes_joined

RUN_CHUNKS_MAX = 16  # chunks written out in a row between widenings of int16 sums

Cell = tuple[int, int, int]  # row vector of a tile, token of it, place


def gemm(name: str, weight_bits: int, tokens: int, grouped: bool, core: Core) -> Any:
    """A PrimFunc that multiplies whole row groups of packed weights with `tokens` rows of activations.

    Parameters: groups (of rows), depth_groups (1 where not grouped), blocks (of each depth group), x_quads and y_rows
    (from one token to the next); x int32 [tokens * x_quads] (quads of int8), weights uint8, zero_sums int32 [tokens *
    depth_groups] (the layout's zero times the sum of x: sums are then those of the signed weights), y int32 [tokens *
    y_rows]. A grouped kernel also takes scales float32 [groups, depth_groups, group rows] before y, which is float32:
    scale times sum, added up in the order of the depth groups, each step rounded.
    """
    with IRBuilder() as builder, prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"tirx.noalias": True, "global_symbol": name})
        _Template(weight_bits, tokens, grouped, core).emit()
    return builder.get()


@dataclass(frozen=True)
class _Corner:
    """The first of a tile: row group, row vector in it, token."""

    group: Any
    vector: Any
    token: Any


class _Template:
    """Emits the parameters and the body of one kernel."""

    def __init__(self, weight_bits: int, tokens: int, grouped: bool, core: Core) -> None:
        self.core, self.layout, self.tokens, self.grouped = core, core.layout(weight_bits), tokens, grouped
        self.multiply = MULTIPLIERS[core.multiply]
        layout = self.layout
        # Multiplying fields where they lie saves shifts, but takes a sum for each place: powers of two too large.
        self.in_place = self.multiply.in_place and tokens == 1
        self.places = tuple(sorted({f.at - f.shift for f in layout.fields})) if self.in_place else (0,)
        self.tile_vectors, self.tile_tokens = self._tile()
        self.limit = self.multiply.limit(layout) if self.multiply.widen else 0
        chunks = max(min(self.limit, RUN_CHUNKS_MAX), core.tiling(weight_bits).run_chunks)
        self.run = max(1, chunks // layout.block_chunks)  # blocks written out in a row

    def _tile(self) -> tuple[int, int]:
        """The row vectors and tokens to work on at once: as many as half of the registers hold the sums of."""
        registers = self.multiply.parts * (2 if self.multiply.widen else 1) * len(self.places)
        vectors, tokens = self.layout.group_vectors, self.tokens
        while vectors * tokens > 1 and 2 * vectors * tokens * registers > self.core.registers:
            vectors, tokens = (vectors // 2, tokens) if vectors >= tokens else (vectors, tokens // 2)
        return vectors, tokens

    def emit(self) -> None:
        self._parameters()
        with T.serial(0, self.groups) as group:
            loops = T.grid(self.layout.group_vectors // self.tile_vectors, self.tokens // self.tile_tokens)
            with loops as (i, j):
                self._tile_products(_Corner(group, i * self.tile_vectors, j * self.tile_tokens))

    def _parameters(self) -> None:
        self.groups, self.depth_groups, self.blocks = (
            T.arg(name, T.int32()) for name in ("groups", "depth_groups", "blocks")
        )
        self.x_quads, self.y_rows = (T.arg(name, T.int32()) for name in ("x_quads", "y_rows"))
        parts = self.groups * self.depth_groups
        self.x = T.arg("x", T.Buffer((self.tokens * self.x_quads,), "int32", align=4))
        self.weights = T.arg("weights", T.Buffer((parts * self.blocks * self.layout.block_bytes,), "uint8"))
        self.zero_sums = T.arg("zero_sums", T.Buffer((self.tokens * self.depth_groups,), "int32", align=4))
        if self.grouped:
            self.scales = T.arg("scales", T.Buffer((parts * self.layout.group_rows,), "float32", align=4))
        self.y = T.arg("y", T.Buffer((self.tokens * self.y_rows,), "float32" if self.grouped else "int32", align=4))

    def _tile_products(self, corner: _Corner) -> None:
        """All of the depth for a tile of row vectors and tokens."""
        cells = list(product(range(self.tile_vectors), range(self.tile_tokens)))
        parts = range(self.multiply.parts)
        sums = {(r, t, p): [self._register("int32") for _ in parts] for r, t in cells for p in self.places}
        totals = {cell: self._register("float32") for cell in cells} if self.grouped else {}
        for total in totals.values():
            self._store(total, self._splat(T.float32(0)))
        with T.serial(0, self.depth_groups) as depth_group:
            for register in (each for registers in sums.values() for each in registers):
                self._store(register, self._splat(T.int32(0)))
            first = depth_group * self.blocks
            runs = self.blocks // self.run
            with T.serial(0, runs) as i:
                self._add_blocks(sums, corner, first + i * self.run, self.run)
            if self.run > 1:
                with T.serial(0, self.blocks - runs * self.run) as i:
                    self._add_blocks(sums, corner, first + runs * self.run + i, 1)
            for r, t in cells:
                self._finish(corner, depth_group, r, t, sums, totals)
        for r, t in totals:
            self._store(self.y, self._load(totals[r, t]), self._y_index(corner, r, t))

    def _finish(self, corner: _Corner, depth_group: Any, r: int, t: int, sums: Any, totals: Any) -> None:
        """Bring the sums of one depth group to y, or scaled to the totals."""
        zero_sum = self.zero_sums[(corner.token + t) * self.depth_groups + depth_group]
        total = self._total({place: sums[r, t, place] for place in self.places}) - self._splat(zero_sum)
        if not self.grouped:
            self._store(self.y, total, self._y_index(corner, r, t))
            return
        floats = f"float32x{self.layout.vector_rows}"
        part = corner.group * self.depth_groups + depth_group
        index = part * self.layout.group_rows + (corner.vector + r) * self.layout.vector_rows
        scaled = T.Cast(floats, total) * self.scales.vload([index], floats)
        rounded = intrinsic("llvm.arithmetic.fence", floats, scaled)  # no core may fuse it with the addition
        self._store(totals[r, t], self._load(totals[r, t]) + rounded)

    def _y_index(self, corner: _Corner, r: int, t: int) -> Any:
        row = corner.group * self.layout.group_rows + (corner.vector + r) * self.layout.vector_rows
        return (corner.token + t) * self.y_rows + row

    def _add_blocks(self, registers: dict[Cell, list[Any]], corner: _Corner, block: Any, count: int) -> None:
        """Add `count` blocks, from number `block` of the row group on, to the sums of a tile."""
        layout = self.layout
        sums: dict[Cell, Sums] = {cell: [self._load(each) for each in registers[cell]] for cell in registers}
        partial: dict[Cell, Sums] = {}  # int16 sums
        x = _Activations(self, corner, block * layout.block_chunks, count * layout.block_chunks)
        for b in range(count):
            vectors = [self._block_vectors(corner, block + b, r) for r in range(self.tile_vectors)]
            for c in range(layout.block_chunks):
                chunk = b * layout.block_chunks + c
                activations = [x.quad(t, chunk) for t in range(self.tile_tokens)]
                for r in range(self.tile_vectors):
                    for place, codes in self._codes(vectors[r], c):
                        for t in range(self.tile_tokens):
                            self._multiply(partial if self.limit else sums, (r, t, place), codes, activations[t])
                if self.limit and (chunk + 1) % self.limit == 0:
                    self._widen(sums, partial)
        self._widen(sums, partial)
        for cell in registers:
            for register, value in zip(registers[cell], sums[cell], strict=True):
                self._store(register, value)

    def _block_vectors(self, corner: _Corner, block: Any, r: int) -> list[Vector]:
        layout, V = self.layout, self.layout.vector_bytes
        number = corner.group * self.depth_groups * self.blocks + block
        start = number * layout.block_bytes + (corner.vector + r) * (layout.block_vectors * V)
        return [self.weights.vload([start + v * V], f"uint8x{V}") for v in range(layout.block_vectors)]

    def _codes(self, vectors: list[Vector], chunk: int) -> list[tuple[int, Vector]]:
        """The codes of a block's chunk with the place that they are multiplied at."""
        if self.in_place:
            found = codes_in_place(self.layout, vectors, chunk)
        else:
            found = [(0, codes_joined(self.core.arch, self.layout, vectors, chunk))]
        return [(place, T.bind(T.reinterpret(f"int8x{self.layout.vector_bytes}", codes))) for place, codes in found]

    def _multiply(self, sums: dict[Cell, Sums], cell: Cell, codes: Vector, x: Vector) -> None:
        before = sums.get(cell, [None] * self.multiply.parts)
        sums[cell] = [T.bind(each) for each in self.multiply.add(before, codes, x, self.layout.zero == 0)]

    def _widen(self, sums: dict[Cell, Sums], partial: dict[Cell, Sums]) -> None:
        """Take the int16 sums over into the int32 sums."""
        for cell, parts in partial.items():
            assert self.multiply.widen
            pairs = zip(sums[cell], parts, strict=True)
            sums[cell] = [T.bind(self.multiply.widen(before, part)) for before, part in pairs]
        partial.clear()

    def _total(self, sums: dict[int, list[Any]]) -> Vector:
        """The int32 sums, a lane for each row, of what was summed at each place."""
        lanes = self.layout.vector_rows
        total: Vector = None
        for place, registers in sums.items():
            parts = [self._load(register) for register in registers]
            value = parts[0]
            if len(parts) == 2:
                even, odd = (T.Shuffle(parts, [T.int32(i) for i in range(start, 2 * lanes, 2)]) for start in (0, 1))
                value = even + odd
            if place:
                value = value >> self._splat(T.int32(place))
            total = value if total is None else total + value
        return total

    def _register(self, dtype: str) -> Any:
        # the default scope would ask TVM's runtime for memory
        return T.alloc_buffer((self.layout.vector_rows,), dtype, scope="global")

    def _splat(self, value: Any) -> Vector:
        return T.broadcast(value, self.layout.vector_rows)

    def _load(self, register: Any) -> Vector:
        return register.vload([0], f"{register.dtype}x{self.layout.vector_rows}")

    def _store(self, buffer: Any, value: Vector, index: Any = None) -> None:
        T.buffer_store(buffer, value, [T.ramp(T.int32(0) if index is None else index, 1, self.layout.vector_rows)])


class _Activations:
    """The quads of a run of chunks, in all lanes of a vector."""

    def __init__(self, template: _Template, corner: _Corner, first: Any, count: int) -> None:
        self.template, self.corner, self.first = template, corner, first
        # a quad of a vector that is there already is an operand of some of its instructions
        self.by_vectors = template.core.arch == "aarch64" and count % QUAD == 0
        self.vectors: dict[tuple[int, int], Vector] = {}

    def quad(self, token: int, chunk: int) -> Vector:
        V = self.template.layout.vector_bytes
        start = (self.corner.token + token) * self.template.x_quads + self.first
        if self.by_vectors:
            vector, lane = divmod(chunk, QUAD)
            if (token, vector) not in self.vectors:
                four = self.template.x.vload([start + vector * QUAD], f"int32x{QUAD}")
                self.vectors[token, vector] = T.bind(four)
            quads = T.Shuffle([self.vectors[token, vector]], [T.int32(lane)] * QUAD)
        else:
            quads = T.broadcast(self.template.x[start + chunk], V // QUAD)
        if self.template.core.multiply == "smull":
            # hides that the halves are equal, for which LLVM would leave out the instructions that take upper halves
            floats = f"float32x{V // QUAD}"
            quads = intrinsic("llvm.arithmetic.fence", floats, T.reinterpret(floats, quads))
        return T.bind(T.reinterpret(f"int8x{V}", quads))
