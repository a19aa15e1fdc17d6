"""What a quantized expert is, in memory and in a safetensors file: integers packed at exactly their width, scales and
zero points in float16, low-rank compensators packed likewise, columns kept in float16.

Values are packed row by row as one stream of bits, the first value in the lowest bits of the first byte; the last byte
of a matrix is filled with zeros. `ExpertId.NAME.integers` [bytes] uint8, `.scale` and `.zero` [N, G] float16; the
compensators are `.u` (U transposed, [r, N]) and `.v` [r, K] with tensors of their own; `.columns` [C] int32, `.kept`
[N, C] float16. Widths, shapes and group sizes are JSON in the file's metadata, see `to_tensors`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.files import write_bytes
from wattbit.models.quantizers.grid import Quantized
from wattbit.plan import ExpertId
from wattbit.recipe import Quantizer

METADATA = "wattbit_experts"  # one entry, for safetensors writes several in any order
FORMAT = 1


def pack(values: Tensor, bits: int) -> Tensor:
    """Bytes [ceil(n bits / 8)] of values [n], uint8 below 2^bits."""
    padded = torch.cat([values, values.new_zeros(-len(values) % 8)]).view(-1, 8)  # 8 values are `bits` bytes
    words = torch.zeros(len(padded), dtype=torch.int64, device=values.device)
    for i in range(8):
        words |= padded[:, i].long() << (bits * i)
    found = torch.stack([((words >> (8 * i)) & 255).byte() for i in range(bits)], dim=1)
    return found.flatten()[: -(-len(values) * bits // 8)]


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Values [count] uint8 of bytes that `pack` made of them."""
    padded = torch.cat([packed, packed.new_zeros(-(-count // 8) * bits - len(packed))]).view(-1, bits)
    words = torch.zeros(len(padded), dtype=torch.int64, device=packed.device)
    for i in range(bits):
        words |= padded[:, i].long() << (8 * i)
    found = torch.stack([((words >> (bits * i)) & (2**bits - 1)).byte() for i in range(8)], dim=1)
    return found.flatten()[:count]


def packed_bytes(rows: int, columns: int, bits: int, group: int, zero: bool) -> int:
    """Bytes of a packed matrix: integers, and a scale (and a zero point) in float16 for each group of a row."""
    return -(-rows * columns * bits // 8) + rows * -(-columns // group) * 2 * (1 + zero)


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A `Quantized` of `shape` [N, K] with its integers packed."""

    shape: tuple[int, int]
    bits: int
    group: int
    integers: Tensor
    scale: Tensor
    zero: Tensor | None

    @classmethod
    def of(cls, found: Quantized) -> Self:
        rows, columns = found.integers.shape
        packed = pack(found.integers.flatten(), found.bits)
        return cls((rows, columns), found.bits, found.group, packed, found.scale, found.zero)

    def quantized(self) -> Quantized:
        rows, columns = self.shape
        integers = unpack(self.integers, self.bits, rows * columns).view(rows, columns)
        return Quantized(integers, self.scale, self.zero, self.bits, self.group)

    def tensors(self) -> dict[str, Tensor]:
        found = {"integers": self.integers, "scale": self.scale}
        return found if self.zero is None else found | {"zero": self.zero}

    def header(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "bits": self.bits, "group": self.group}

    @classmethod
    def read(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Self:
        rows, columns = header["shape"]
        scale, zero = tensors[f"{name}.scale"], tensors.get(f"{name}.zero")
        return cls((rows, columns), header["bits"], header["group"], tensors[f"{name}.integers"], scale, zero)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """One matrix [N, K] of an expert: integers of the columns that are not kept, U V on these, and what is kept."""

    matrix: PackedMatrix
    u: PackedMatrix | None = None  # [r, N]
    v: PackedMatrix | None = None  # [r, K]
    columns: Tensor | None = None  # [C] int32, ascending
    kept: Tensor | None = None  # [N, C] float16

    def dequantize(self) -> Tensor:
        """[N, K] float32."""
        weights = self.matrix.quantized().dequantize()
        if self.u is not None and self.v is not None:
            weights += self.u.quantized().dequantize().T @ self.v.quantized().dequantize()
        if self.columns is None or self.kept is None:
            return weights
        whole = weights.new_empty(len(weights), weights.shape[1] + len(self.columns))
        whole[:, other_columns(self.columns, whole.shape[1])] = weights
        whole[:, self.columns.long()] = self.kept.float()
        return whole

    def tensors(self) -> dict[str, Tensor]:
        found = self.matrix.tensors()
        for name, part in (("u", self.u), ("v", self.v)):
            if part is not None:
                found |= {f"{name}.{key}": value for key, value in part.tensors().items()}
        if self.columns is not None and self.kept is not None:
            found |= {"columns": self.columns, "kept": self.kept}
        return found

    def header(self) -> dict[str, Any]:
        parts = {"u": self.u, "v": self.v}
        return self.matrix.header() | {name: part.header() for name, part in parts.items() if part is not None}

    @classmethod
    def read(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Self:
        u, v = (
            PackedMatrix.read(header[part], tensors, f"{name}.{part}") if part in header else None
            for part in ("u", "v")
        )
        matrix = PackedMatrix.read(header, tensors, name)
        return cls(matrix, u, v, tensors.get(f"{name}.columns"), tensors.get(f"{name}.kept"))


def other_columns(columns: Tensor, count: int) -> Tensor:
    """The columns [count - C] that are not among `columns` [C], ascending."""
    other = torch.ones(count, dtype=torch.bool, device=columns.device)
    other[columns.long()] = False
    return other.nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class PackedExpert:
    """An expert's matrices by name. quantizer: the one that made them; tokens: calibration tokens that it had."""

    weights: Mapping[str, PackedWeight]
    quantizer: Quantizer
    tokens: int

    @property
    def bytes(self) -> int:
        """Bytes of all that is stored of it."""
        return sum(t.nbytes for weight in self.weights.values() for t in weight.tensors().values())

    def dequantize(self) -> dict[str, Tensor]:
        """Matrices [out, in] in float32."""
        return {name: weight.dequantize() for name, weight in self.weights.items()}

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}.{key}": t for name, weight in self.weights.items() for key, t in weight.tensors().items()}

    def header(self) -> dict[str, Any]:
        weights = {name: weight.header() for name, weight in self.weights.items()}
        return {"quantizer": self.quantizer, "tokens": self.tokens, "weights": weights}

    @classmethod
    def read(cls, header: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str) -> Self:
        """The expert whose tensors are called `name.*`."""
        parts = header["weights"].items()
        weights = {part: PackedWeight.read(about, tensors, f"{name}.{part}") for part, about in parts}
        return cls(weights, header["quantizer"], header["tokens"])


def to_tensors(experts: Mapping[ExpertId, PackedExpert]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by name and the metadata that a safetensors file needs to read them back."""
    tensors = {
        f"{identity}.{name}": tensor.clone(memory_format=torch.contiguous_format)  # matrices may share their columns
        for identity, expert in experts.items()
        for name, tensor in expert.tensors().items()
    }
    header = {str(identity): expert.header() for identity, expert in experts.items()}
    return tensors, {METADATA: json.dumps({"format": FORMAT, "experts": header}, separators=(",", ":"))}


def from_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[ExpertId, PackedExpert]:
    """What `to_tensors` took apart; other tensors and metadata may stand beside it."""
    about = json.loads(metadata.get(METADATA, "{}"))
    if about.get("format") != FORMAT:
        raise WattbitError(f"the file's experts are of format {about.get('format')}, not {FORMAT}; save them again")
    try:
        return {ExpertId.parse(name): PackedExpert.read(e, tensors, name) for name, e in about["experts"].items()}
    except KeyError as error:
        raise WattbitError(f"the file has no {error}, which its header names; save the experts again") from None


def save_experts(path: Path, experts: Mapping[ExpertId, PackedExpert]) -> None:
    tensors, metadata = to_tensors(experts)
    write_bytes(path, safetensors_bytes({name: t.cpu() for name, t in tensors.items()}, metadata=metadata))


def load_experts(path: Path, device: str = "cpu") -> dict[ExpertId, PackedExpert]:
    """The experts of a file that `save_experts` wrote, bit for bit; WattbitError for any other file."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dictionary
            return from_tensors(tensors, file.metadata() or {})
    except FileNotFoundError:
        raise WattbitError(f"{path} does not exist; save a quantized model there") from None
    except (SafetensorError, OSError) as error:
        raise WattbitError(f"{path} cannot be read ({error}); save the experts again") from None
