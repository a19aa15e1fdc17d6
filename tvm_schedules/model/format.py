"""The weights file of a whole model: one header, a table of named tensors, their bytes. Standard library only.

Little-endian. A header of 192 bytes (`wb_header` of weights.h) holds the file's version, the layout of packed matrices,
its own length, the model's sizes and the SHA-256 of header and table; an entry of 128 bytes for each tensor, sorted by
name, its kind, shape, place and SHA-256. Tensors start at multiples of 64 bytes, so that the file is mapped and used as
it is. Nothing in it is code.
"""

import hashlib
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from wattbit.errors import WattbitError
from wattbit.files import atomic

VERSION = 1
MAGIC = b"wattbitM"
ALIGN = 64
HEADER = struct.Struct("<8sI4IIQd15I52x32s")
ENTRY = struct.Struct("<56s5I4xQQ32s")
DIGEST_BYTES = 32
NAME_BYTES = 55

NORMS = ("layer", "rms")
EXPERTS = ("relu", "gated")
QK_NORMS = ("none", "whole", "head")
SIZES = ("vocabulary", "width", "hidden", "layers", "heads", "kv_heads", "head_width", "experts", "active", "context")
KINDS = ("float32", "int32", "packed")

_BLOCK = 1 << 20  # bytes read at once
_POPULATE_READ = 22  # MADV_POPULATE_READ of Linux 5.14, which Python's mmap does not name


@dataclass(frozen=True)
class DecoderConfig:
    """A decoder's sizes, as the runtime knows them; see wattbit/tvm_schedules/model/weights.h.

    norm: LayerNorm without bias, or RMSNorm. experts_kind: ReLU experts of integers, or SwiGLU. qk_norm: RMSNorm of
    queries and keys, over a token's whole vector or over each head. renormalize: the chosen experts' gates sum to 1.
    shared_hidden: width of an expert that every token goes through, gated by a sigmoid; 0 for none.
    """

    vocabulary: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    experts: int
    active: int
    context: int
    norm: str
    experts_kind: str
    qk_norm: str
    renormalize: bool
    shared_hidden: int
    norm_eps: float

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "DecoderConfig":
        names = {field.name for field in fields(cls)}
        if set(record) != names:
            raise WattbitError(f"a decoder has the fields {', '.join(sorted(names))}, not {', '.join(sorted(record))}")
        for name, allowed in (("norm", NORMS), ("experts_kind", EXPERTS), ("qk_norm", QK_NORMS)):
            if record[name] not in allowed:
                raise WattbitError(f"{name} must be one of {', '.join(allowed)}, not {record[name]!r}")
        return cls(**record)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def words(self) -> tuple[int, ...]:
        """The header's words from `vocabulary` on."""
        sizes = tuple(getattr(self, name) for name in SIZES)
        kinds = NORMS.index(self.norm), EXPERTS.index(self.experts_kind), QK_NORMS.index(self.qk_norm)
        return (*sizes, *kinds, int(self.renormalize), self.shared_hidden)

    @classmethod
    def from_words(cls, words: tuple[int, ...], norm_eps: float) -> "DecoderConfig":
        *sizes, norm, kind, qk_norm, renormalize, shared = words
        return cls(
            **dict(zip(SIZES, sizes, strict=True)),
            norm=NORMS[norm],
            experts_kind=EXPERTS[kind],
            qk_norm=QK_NORMS[qk_norm],
            renormalize=bool(renormalize),
            shared_hidden=shared,
            norm_eps=norm_eps,
        )


@dataclass(frozen=True)
class Entry:
    """One tensor of the table. bits and group are of packed matrices: a scale for each `group` columns of a row."""

    name: str
    kind: str
    bits: int
    rows: int
    depth: int
    group: int
    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class Item:
    """One tensor to be written: what the table says of it, and its bytes when they are asked for."""

    name: str
    kind: str
    rows: int
    depth: int
    load: Callable[[], bytes]
    bits: int = 0
    group: int = 0


def write(path: Path, config: DecoderConfig, layout: tuple[int, int, int, int], items: list[Item]) -> str:
    """Write a weights file, one tensor in memory at a time; its digest."""
    items = sorted(items, key=lambda item: item.name.encode())
    for item in items:
        if len(item.name.encode()) > NAME_BYTES:
            raise WattbitError(f"tensor {item.name} has a name longer than {NAME_BYTES} bytes; shorten it")
    with atomic(path) as temporary, temporary.open("wb") as stream:
        stream.seek(_padded(HEADER.size + ENTRY.size * len(items)))
        entries = [_write_item(stream, item) for item in items]
        end = _padded(stream.tell())
        stream.truncate(end)
        table = b"".join(_entry(entry) for entry in entries)
        header = [MAGIC, VERSION, *layout, len(entries), end, config.norm_eps, *config.words]
        digest = hashlib.sha256(HEADER.pack(*header, bytes(DIGEST_BYTES)) + table).digest()
        stream.seek(0)
        stream.write(HEADER.pack(*header, digest) + table)
    return digest.hex()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A weights file, to be read by the functions below; WattbitError where it cannot be, now or within the block."""
    try:
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        raise WattbitError(
            f"{path} cannot be read ({error.strerror or error}); build or deploy the model again"
        ) from None


def read_table(stream: BinaryIO) -> tuple[DecoderConfig, tuple[Entry, ...], str]:
    """Configuration, tensors and digest of an opened weights file; WattbitError when header or table were altered."""
    path = stream.name
    head = stream.read(HEADER.size)
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise WattbitError(f"{path} is no weights file of wattbit; build the model again")
    _, version, *_, count, size, norm_eps = (fields := HEADER.unpack(head))[:9]
    present = os.fstat(stream.fileno()).st_size
    table = stream.read(min(ENTRY.size * count, present))
    if version != VERSION:
        raise WattbitError(f"{path} has version {version}, not {VERSION}; build the model again")
    if present != size:
        raise WattbitError(f"{path} is truncated ({present} of {size} bytes); build or deploy it again")
    blank = head[:-DIGEST_BYTES] + bytes(DIGEST_BYTES)
    digest = hashlib.sha256(blank + table).digest()
    if digest != head[-DIGEST_BYTES:]:
        raise WattbitError(
            f"{path}: header and table have digest {digest.hex()[:16]}, not {head[-DIGEST_BYTES:].hex()[:16]}; "
            "build or deploy the model again"
        )
    try:
        if len(table) != ENTRY.size * count:
            raise IndexError
        entries = tuple(_parse(entry) for (entry,) in struct.iter_unpack(f"{ENTRY.size}s", table))
        if any(entry.offset + entry.size > size for entry in entries):
            raise IndexError
        config = DecoderConfig.from_words(fields[9:-1], norm_eps)
    except (IndexError, UnicodeDecodeError):
        raise WattbitError(f"{path} describes no model that this version knows; build the model again") from None
    return config, entries, digest.hex()


def mapped(stream: BinaryIO) -> mmap.mmap:
    """An opened weights file as memory, to be read only; in large pages where kernel and file system have them for it.

    With 2 MB pages fewer walks through page tables keep the memory waiting. Linux gives them to what is first read
    through such a mapping; what other reading or writing has left in the page cache stays as it is. Raises WattbitError
    where there is no room for it.
    """
    try:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WattbitError(f"{stream.name} cannot be mapped into memory ({error}); build it with fewer bits") from None
    with suppress(AttributeError, OSError):  # of another system, or of a kernel without them
        content.madvise(mmap.MADV_HUGEPAGE)
    return content


def verify(stream: BinaryIO, entries: Sequence[Entry], content: mmap.mmap) -> None:
    """Compare the tensors of an opened weights file, mapped in `content`, with their digests.

    They are brought in through the mapping, for its large pages, and read from the file: a disk that fails and a file
    that is cut meanwhile are an OSError or another digest there, and a SIGBUS in memory. Raises WattbitError naming the
    first tensor that was altered.
    """
    for entry in entries:
        start = entry.offset // mmap.PAGESIZE * mmap.PAGESIZE
        with suppress(AttributeError, OSError, ValueError):  # of an older kernel, or of a file that was cut
            content.madvise(_POPULATE_READ, start, entry.offset + entry.size - start)
        stream.seek(entry.offset)
        found, left = hashlib.sha256(), entry.size
        while left and (block := stream.read(min(left, _BLOCK))):
            found.update(block)
            left -= len(block)
        if found.digest() != entry.sha256:
            raise WattbitError(
                f"{stream.name}: tensor {entry.name} has digest {found.hexdigest()[:16]}, not "
                f"{entry.sha256.hex()[:16]}; build or deploy the model again"
            )


def _write_item(stream: BinaryIO, item: Item) -> Entry:
    offset = _padded(stream.tell())
    data = item.load()
    stream.seek(offset)
    stream.write(data)
    sha256 = hashlib.sha256(data).digest()
    return Entry(item.name, item.kind, item.bits, item.rows, item.depth, item.group, offset, len(data), sha256)


def _entry(e: Entry) -> bytes:
    return ENTRY.pack(
        e.name.encode(), KINDS.index(e.kind), e.bits, e.rows, e.depth, e.group, e.offset, e.size, e.sha256
    )


def _parse(data: bytes) -> Entry:
    name, kind, *rest = ENTRY.unpack(data)
    return Entry(name.rstrip(b"\0").decode(), KINDS[kind], *rest)


def _padded(size: int) -> int:
    return -(-size // ALIGN) * ALIGN
