"""The one kernel template in TensorIR: products of packed weights and activations, of any width on any core.

The loops over row groups and blocks are TensorIR loops of any length; what is within a run of blocks is written out by
ordinary Python loops as single assignments, so that sums stay in registers.
"""

from itertools import product
from typing import Any

from tvm.script import tirx as T
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder.tirx import prim_func

from wattbit.tvm_schedules.cores import Core
from wattbit.tvm_schedules.layout import Field
from wattbit.tvm_schedules.multiply import MULTIPLIERS, Sums, Vector, intrinsic

RUN_CHUNKS_MAX = 16  # chunks written out in a row; more only fills the instruction cache


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
        _Template(weight_bits, tokens, grouped, core)
    return builder.get()


class _Template:
    """Emits the parameters and the body of one kernel."""

    def __init__(self, weight_bits: int, tokens: int, grouped: bool, core: Core) -> None:
        self.core, self.layout, self.tokens, self.grouped = core, core.layout(weight_bits), tokens, grouped
        self.multiply = MULTIPLIERS[core.multiply]
        layout = self.layout
        # Multiplying fields where they lie saves shifts, but takes a sum for each place: powers of two too large.
        self.in_place = self.multiply.in_place and tokens == 1
        self.places = tuple(sorted({f.at - f.shift for f in layout.fields})) if self.in_place else (0,)
        self.tile = max(1, layout.group_vectors // tokens)  # row vectors worked on at once
        chunks = min(self.multiply.limit(layout), RUN_CHUNKS_MAX) if self.multiply.widen else 8
        self.run = max(1, chunks // layout.block_chunks)  # blocks written out in a row
        self._parameters()
        with T.serial(0, self.groups) as group:
            for first in range(0, layout.group_vectors, self.tile):
                self._row_vectors(group, first)

    def _parameters(self) -> None:
        layout = self.layout
        self.groups, self.depth_groups, self.blocks = (
            T.arg(name, T.int32()) for name in ("groups", "depth_groups", "blocks")
        )
        self.x_quads, self.y_rows = (T.arg(name, T.int32()) for name in ("x_quads", "y_rows"))
        row_blocks = self.groups * self.depth_groups
        self.x = T.arg("x", T.Buffer((self.tokens * self.x_quads,), "int32"))
        self.weights = T.arg("weights", T.Buffer((row_blocks * self.blocks * layout.block_bytes,), "uint8"))
        self.zero_sums = T.arg("zero_sums", T.Buffer((self.tokens * self.depth_groups,), "int32", align=4))
        if self.grouped:
            self.scales = T.arg("scales", T.Buffer((row_blocks * layout.group_rows,), "float32", align=4))
        self.y = T.arg("y", T.Buffer((self.tokens * self.y_rows,), "float32" if self.grouped else "int32", align=4))

    def _row_vectors(self, group: Any, first: int) -> None:
        """All of the depth for `tile` row vectors of a group, from its vector `first` on."""
        lanes = self.layout.vector_rows
        cells = list(product(range(self.tile), range(self.tokens)))
        sums = {(*cell, place): self._registers("int32") for cell in cells for place in self.places}
        totals = {cell: _register("float32", lanes) for cell in cells} if self.grouped else {}
        for total in totals.values():
            _store(total, T.broadcast(T.float32(0), lanes), lanes)
        with T.serial(0, self.depth_groups) as depth_group:
            for registers in sums.values():
                for register in registers:
                    _store(register, T.broadcast(T.int32(0), lanes), lanes)
            before = depth_group * self.blocks
            runs = self.blocks // self.run
            with T.serial(0, runs) as i:
                self._add_blocks(sums, group, first, before, i * self.run, self.run)
            if self.run > 1:
                with T.serial(0, self.blocks - runs * self.run) as i:
                    self._add_blocks(sums, group, first, before, runs * self.run + i, 1)
            for r, t in cells:
                total = self._total([(place, sums[r, t, place]) for place in self.places])
                total = total - T.broadcast(self.zero_sums[t * self.depth_groups + depth_group], lanes)
                row = (first + r) * lanes
                if self.grouped:
                    index = (group * self.depth_groups + depth_group) * self.layout.group_rows + row
                    scaled = T.Cast(f"float32x{lanes}", total) * self.scales.vload([index], f"float32x{lanes}")
                    rounded = intrinsic("llvm.arithmetic.fence", f"float32x{lanes}", scaled)  # no core may fuse the sum
                    _store(totals[r, t], _load(totals[r, t]) + rounded, lanes)
                else:
                    _store(self.y, total, lanes, t * self.y_rows + group * self.layout.group_rows + row)
        for r, t in totals:
            row = (first + r) * lanes
            _store(self.y, _load(totals[r, t]), lanes, t * self.y_rows + group * self.layout.group_rows + row)

    def _add_blocks(
        self, sums: dict[tuple[int, int, int], list[Any]], group: Any, first: int, before: Any, block: Any, count: int
    ) -> None:
        """Add `count` blocks, from number `block` of the depth group on, to the sums of a tile of row vectors."""
        layout, V = self.layout, self.layout.vector_bytes
        values: dict[tuple[int, int, int], Sums] = {cell: [_load(each) for each in sums[cell]] for cell in sums}
        partial: dict[tuple[int, int, int], Sums] = {}
        limit = self.multiply.limit(layout) if self.multiply.widen else 0
        start = (group * self.depth_groups * self.blocks + before + block) * layout.block_bytes
        quad = (before + block) * layout.block_chunks
        for b in range(count):
            vectors = [
                [
                    self.weights.vload(
                        [start + ((b * layout.group_vectors + first + r) * layout.block_vectors + v) * V], f"uint8x{V}"
                    )
                    for v in range(layout.block_vectors)
                ]
                for r in range(self.tile)
            ]
            for c in range(layout.block_chunks):
                x = [self._activations(t, quad + b * layout.block_chunks + c) for t in range(self.tokens)]
                for r in range(self.tile):
                    for place, unsigned in self._codes(vectors[r], c):
                        codes = T.bind(T.reinterpret(f"int8x{V}", unsigned))
                        for t in range(self.tokens):
                            self._multiply(values, partial, (r, t, place), codes, x[t])
                if limit and (b * layout.block_chunks + c + 1) % limit == 0:
                    self._widen(values, partial)
        self._widen(values, partial)
        for cell, registers in sums.items():
            for register, value in zip(registers, values[cell], strict=True):
                _store(register, value, layout.vector_rows)

    def _activations(self, token: int, quad: Any) -> Vector:
        V = self.layout.vector_bytes
        quads = T.broadcast(self.x[token * self.x_quads + quad], V // 4)
        return T.bind(T.reinterpret(f"int8x{V}", quads))

    def _multiply(self, values: Any, partial: Any, cell: tuple[int, int, int], codes: Vector, x: Vector) -> None:
        signed = self.layout.zero == 0
        if self.multiply.widen is None:
            values[cell] = [T.bind(each) for each in self.multiply.add(values[cell], codes, x, signed)]
        else:
            before = partial.get(cell, [None] * self.multiply.parts)
            partial[cell] = [T.bind(each) for each in self.multiply.add(before, codes, x, signed)]

    def _widen(self, values: dict[Any, Sums], partial: dict[Any, Sums]) -> None:
        """Take the int16 sums over into the int32 sums."""
        for cell, parts in partial.items():
            assert self.multiply.widen
            values[cell] = [
                T.bind(self.multiply.widen(sum_, part)) for sum_, part in zip(values[cell], parts, strict=True)
            ]
        partial.clear()

    def _codes(self, vectors: list[Vector], chunk: int) -> list[tuple[int, Vector]]:
        """The codes of a block's chunk as (place, bytes): one vector put together, or one for each field."""
        V = self.layout.vector_bytes
        fields = [field for field in self.layout.fields if field.chunk == chunk]
        if self.in_place:
            masks = [T.broadcast(T.uint8(f.mask), V) for f in fields]
            return [
                (f.at - f.shift, vectors[f.vector] if f.bits == 8 else vectors[f.vector] & mask)
                for f, mask in zip(fields, masks, strict=True)
            ]
        if self.core.arch == "x86_64":
            return [(0, _join(vectors, fields, V))]
        return [(0, self._insert(vectors, fields))]

    def _insert(self, vectors: list[Vector], fields: list[Field]) -> Vector:
        """ARM's way: each field is shifted in above the one before; what lies above the last is cleared."""
        V = self.layout.vector_bytes
        codes: Vector = None
        for field in fields:
            bits = vectors[field.vector]
            if field.at:
                bits = bits >> T.broadcast(T.uint8(field.at), V)
            if codes is None:
                codes = bits
            elif self.core.arch == "aarch64":
                codes = intrinsic(f"llvm.aarch64.neon.vsli.v{V}i8", f"uint8x{V}", codes, bits, T.int32(field.shift))
            else:
                shifts = T.broadcast(T.uint8(field.shift), V)
                codes = intrinsic(f"llvm.arm.neon.vshiftins.v{V}i8", f"uint8x{V}", codes, bits, shifts)
        last = fields[-1]
        if last.at + last.bits == 8 and last.shift + 8 - last.at <= self.layout.weight_bits:
            return codes
        return codes & T.broadcast(T.uint8(2**self.layout.weight_bits - 1), V)

    def _registers(self, dtype: str) -> list[Any]:
        return [_register(dtype, self.layout.vector_rows) for _ in range(self.multiply.parts)]

    def _total(self, sums: list[tuple[int, list[Any]]]) -> Vector:
        """The int32 sums, a lane for each row, of what was summed at each place."""
        lanes = self.layout.vector_rows
        total: Vector = None
        for place, registers in sums:
            parts = [_load(register) for register in registers]
            value = parts[0]
            if len(parts) == 2:
                even, odd = (T.Shuffle(parts, [T.int32(i) for i in range(start, 2 * lanes, 2)]) for start in (0, 1))
                value = even + odd
            if place:
                value = value >> T.broadcast(T.int32(place), lanes)
            total = value if total is None else total + value
        return total


def _register(dtype: str, lanes: int) -> Any:
    # the default scope would ask TVM's runtime for memory
    return T.alloc_buffer((lanes,), dtype, scope="global")


def _load(register: Any) -> Vector:
    return register.vload([0], f"{register.dtype}x{register.shape[0]}")


def _store(buffer: Any, value: Vector, lanes: int, index: Any = 0) -> None:
    T.buffer_store(buffer, value, [T.ramp(T.int32(index) if isinstance(index, int) else index, 1, lanes)])


def _join(vectors: list[Vector], fields: list[Field], V: int) -> Vector:
    """x86's way: each field is shifted to its place, cleared around, and the fields are or-ed."""
    codes: Vector = None
    for field in fields:
        bits, shift = vectors[field.vector], field.at - field.shift
        if shift:
            bits = bits >> T.broadcast(T.uint8(shift), V)
        if field.bits < 8:
            bits = bits & T.broadcast(T.uint8((2**field.bits - 1) << field.shift), V)
        codes = bits if codes is None else codes | bits
    return codes
