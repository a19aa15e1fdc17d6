"""The weights file: what was written is read, and what is broken or foreign is refused by name."""

import errno
import hashlib
import os
import shutil
import struct
from pathlib import Path

import pytest

from tests.runtime_support import FAMILIES, build_host, gated_model
from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.models.portable import FORMAT, Portable
from wattbit.tvm_schedules.cores import CORES, host_core
from wattbit.tvm_schedules.model import format as weights_file
from wattbit.tvm_schedules.model import source as source_module
from wattbit.tvm_schedules.model.format import DecoderConfig
from wattbit.tvm_schedules.model.pack import pack
from wattbit.tvm_schedules.model.runtime import Decoder
from wattbit.tvm_schedules.model.source import SourceFile

BROKEN = "build or deploy the model again"


@pytest.fixture(scope="module")
def portable() -> Portable:
    return gated_model("olmoe", "uniform4").portable


@pytest.fixture(scope="module")
def built(portable: Portable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_host(portable, tmp_path_factory.mktemp("built"))


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """The built folder, to be spoiled."""
    return Path(shutil.copytree(built, tmp_path / "copy"))


def seal(path: Path) -> None:
    """The header's digest as if the file had been written so."""
    data = bytearray(path.read_bytes())
    count = weights_file.HEADER.unpack(data[: weights_file.HEADER.size])[6]
    start, end = weights_file.HEADER.size - 32, weights_file.HEADER.size + weights_file.ENTRY.size * count
    data[start : start + 32] = bytes(32)
    data[start : start + 32] = hashlib.sha256(data[:end]).digest()
    path.write_bytes(data)


def reseal(folder: Path) -> None:
    """Header and record as if the file had been written so: for what the digest would find first."""
    path = folder / "model.wattbit"
    seal(path)
    record = read_json(folder / "model.json")
    record["weights"]["digest"] = table(path)[2]
    write_json(folder / "model.json", record)


def table(path: Path) -> tuple[DecoderConfig, tuple[weights_file.Entry, ...], str]:
    with weights_file.opened(path) as stream:
        return weights_file.read_table(stream)


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_the_table_is_what_was_written(built: Path, portable: Portable) -> None:
    with weights_file.opened(built / "model.wattbit") as stream:
        config, entries, digest = weights_file.read_table(stream)
        content = weights_file.mapped(stream)
        weights_file.verify(stream, entries, content)
    assert bytes(content) == (built / "model.wattbit").read_bytes()
    assert config == DecoderConfig.from_json(portable.config)
    assert digest == read_json(built / "model.json")["weights"]["digest"]
    assert {entry.name for entry in entries} == set(portable.tensors)
    for entry in entries:
        assert entry.offset % 64 == 0
        assert entry.bits == portable.bits.get(entry.name, 0)
        if entry.kind == "packed" or not entry.name.endswith(".scale"):
            assert entry.rows * entry.depth == portable.tensors[entry.name].numel()
        if entry.kind == "packed":
            assert entry.size == host_core().layout(entry.bits).matrix_bytes(entry.rows, entry.depth)
    assert {entry.bits for entry in entries if entry.kind == "packed"} == {4, 8}


def test_the_same_model_gives_the_same_bytes(built: Path, portable: Portable, tmp_path: Path) -> None:
    portable.save(tmp_path / "again.safetensors")
    pack(SourceFile(tmp_path / "again.safetensors"), host_core(), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (built / "model.wattbit").read_bytes()


def test_a_truncated_file_is_refused(copy: Path) -> None:
    path = copy / "model.wattbit"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(WattbitError, match=rf"truncated \({size - 64} of {size} bytes\); build or deploy it again"):
        Decoder(copy)
    path.write_bytes(b"watt")
    with pytest.raises(WattbitError, match=r"is no weights file of wattbit; build the model again"):
        Decoder(copy)
    path.unlink()
    with pytest.raises(WattbitError, match=r"cannot be read \(No such file or directory\)"):
        Decoder(copy)


def test_an_empty_file_cannot_be_mapped(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with (
        weights_file.opened(tmp_path / "empty") as stream,
        pytest.raises(WattbitError, match="cannot be mapped into memory"),
    ):
        weights_file.mapped(stream)


def test_a_file_that_is_cut_while_it_is_checked_is_an_error_and_no_bus_error(copy: Path) -> None:
    path = copy / "model.wattbit"
    with weights_file.opened(path) as stream:
        _, entries, _ = weights_file.read_table(stream)
        content = weights_file.mapped(stream)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(WattbitError, match=rf"tensor \S+ has digest [0-9a-f]{{16}}, not .*{BROKEN}"):
            weights_file.verify(stream, entries, content)


def test_a_disk_that_fails_is_an_error(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(weights_file, "verify", fail)
    with pytest.raises(WattbitError, match=rf"model.wattbit cannot be read \(Input/output error\); {BROKEN}"):
        Decoder(built)


def test_a_flipped_bit_is_found_and_named(copy: Path) -> None:
    path = copy / "model.wattbit"
    _, entries, _ = table(path)
    spoiled = next(entry for entry in entries if entry.name == "layers.1.experts.3.down")
    byte = path.read_bytes()[spoiled.offset + 5]
    patch(path, spoiled.offset + 5, bytes([byte ^ 1]))
    with pytest.raises(WattbitError, match=rf"tensor {spoiled.name} has digest [0-9a-f]{{16}}, not .*{BROKEN}"):
        Decoder(copy)
    patch(path, spoiled.offset + 5, bytes([byte]))
    patch(path, 60, b"\1")
    with pytest.raises(WattbitError, match=rf"header and table have digest [0-9a-f]{{16}}, not .*{BROKEN}"):
        Decoder(copy)


def test_the_file_of_another_build_is_refused(copy: Path, portable: Portable) -> None:
    changed = dict(portable.tensors) | {"norm": portable.tensors["norm"] * 2}
    Portable(portable.config, changed, portable.bits, portable.group).save(copy / "other.safetensors")
    pack(SourceFile(copy / "other.safetensors"), host_core(), copy / "model.wattbit")
    with pytest.raises(WattbitError, match=r"is not the file of .*model.json; build or deploy the model again"):
        Decoder(copy)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, 2, "has version 2, not 1; build the model again"),
        (12, 77, r"packed in layout 77/\d+/\d+/\d+, the kernels read \d+/"),
        (48, 0, "the weights file has a size of 0"),
        (72, 65, "describes no model that this library runs"),
        (60, 3, r"the weights file lacks tensor layers.2"),
        (56, 33, r"tensor layers.0.experts.0.gate is of kind 2 \[32, 64\], not 2 \[33, 64\]"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(copy: Path, offset: int, value: int, message: str) -> None:
    patch(copy / "model.wattbit", offset, struct.pack("<I", value))
    if offset > 8:
        reseal(copy)
    with pytest.raises(WattbitError, match=message):
        Decoder(copy)


@pytest.mark.parametrize(
    ("offset", "value"),
    [(88, 9), (28, 2**32 - 1), (192, 0xFFFFFFFF), (192 + 56, 7), (192 + 80 + 4, 2**32 - 1)],
    ids=["norm", "count", "name", "kind", "offset"],
)
def test_words_of_no_meaning_are_refused(copy: Path, offset: int, value: int) -> None:
    patch(copy / "model.wattbit", offset, struct.pack("<I", value))
    seal(copy / "model.wattbit")
    with pytest.raises(WattbitError, match="describes no model that this version knows; build the model again"):
        table(copy / "model.wattbit")


def test_a_missing_tensor_is_named(copy: Path, portable: Portable) -> None:
    tensors = {name: value for name, value in portable.tensors.items() if name != "layers.1.router"}
    Portable(portable.config, tensors, portable.bits, portable.group).save(copy / "other.safetensors")
    pack(SourceFile(copy / "other.safetensors"), host_core(), copy / "model.wattbit")
    reseal(copy)
    with pytest.raises(WattbitError, match=r"the weights file lacks tensor layers.1.router"):
        Decoder(copy)


@pytest.mark.parametrize("name", ["layers.0.experts.1.gate", "layers.1.experts.0.down"])
def test_an_expert_of_floats_is_refused(copy: Path, portable: Portable, name: str) -> None:
    tensors = portable.tensors | {name: portable.tensors[name].float()}
    bits, group = (
        {key: value for key, value in each.items() if key != name} for each in (portable.bits, portable.group)
    )
    Portable(portable.config, tensors, bits, group).save(copy / "other.safetensors")
    pack(SourceFile(copy / "other.safetensors"), host_core(), copy / "model.wattbit")
    reseal(copy)
    with pytest.raises(WattbitError, match=rf"tensor {name} is of kind 0 .*, not 2"):
        Decoder(copy)


def test_another_cores_file_is_refused(copy: Path) -> None:
    other = next(core for core in CORES.values() if core.arch == "armv7")
    pack(SourceFile(copy / "decoder.safetensors"), other, copy / "model.wattbit")
    reseal(copy)
    with pytest.raises(WattbitError, match=r"packed in layout .*, the kernels read"):
        Decoder(copy)


def test_threads_are_checked(built: Path) -> None:
    with pytest.raises(WattbitError, match="threads must be 1 to 256, not 300"):
        Decoder(built, threads=300)


@pytest.mark.parametrize("error", [WattbitError("no"), KeyboardInterrupt(), MemoryError()])
def test_a_decoder_that_cannot_begin_leaves_no_threads(
    built: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(_: Decoder) -> None:
        assert threads() == before + 3
        raise error

    before = threads()
    monkeypatch.setattr(Decoder, "reset", fail)
    with pytest.raises(type(error)):
        Decoder(built, threads=4)
    assert threads() == before


def test_gated_experts_cannot_be_placed_elsewhere(built: Path) -> None:
    with (
        Decoder(built, threads=1) as decoder,
        pytest.raises(WattbitError, match="gated experts run on these cores only"),
    ):
        decoder.place([], lambda experts, x: x)


def test_strange_exports_are_refused(tmp_path: Path, portable: Portable) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(WattbitError, match=r"is no exported model \(.*\); export it again"):
        SourceFile(path)
    path.write_bytes(b"\x08\0\0\0\0\0\0\0notjson!")
    with pytest.raises(WattbitError, match=r"is no exported model \(.*\); export it again"):
        SourceFile(path)
    Portable(portable.config | {"norm": "batch"}, portable.tensors, portable.bits, portable.group).save(path)
    with pytest.raises(WattbitError, match="norm must be one of layer, rms, not 'batch'"):
        SourceFile(path)
    Portable(portable.config | {"tied": True}, portable.tensors, portable.bits, portable.group).save(path)
    with pytest.raises(WattbitError, match="a decoder has the fields active, context"):
        SourceFile(path)


def test_both_sides_name_the_same_format() -> None:
    assert FORMAT == source_module.FORMAT
    assert set(FAMILIES) == {"mixtral", "olmoe", "qwen"}
