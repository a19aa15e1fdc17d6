"""A built folder: the same input gives the same bytes, it runs where it should, and says what is wrong with it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tvm_support import inputs, random_expert, runnable
from wattbit.arith import ExpertInts, forward
from wattbit.errors import WattbitError
from wattbit.files import sha256_file
from wattbit.plan import Allocation, ExpertId, ExpertShape, Placement, Precision
from wattbit.tvm_schedules.boardside import Kernels
from wattbit.tvm_schedules.compile import build
from wattbit.tvm_schedules.cores import CORES, host_core
from wattbit.tvm_schedules.layout import LAYOUT_VERSION
from wattbit.tvm_schedules.toolchain import RUNNER

SHAPE = ExpertShape(24, 40)
EXPERTS = [
    random_expert(precision, SHAPE, seed=i, expert=ExpertId(i // 2, i % 2))
    for i, precision in enumerate((Precision(2), Precision(3, 4), Precision(4), Precision(8)))
]
W1_BYTES = host_core().layout(2).matrix_bytes(SHAPE.d_hidden, SHAPE.d_model)  # of L0E0
ALLOCATION = Allocation(tuple(Placement(ints.expert, "host", ints.precision) for ints in EXPERTS))


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    for ints in EXPERTS:
        ints.save(folder / f"{ints.expert}.npz")
    return folder


@pytest.fixture(scope="module")
def built(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("host")
    build(export, ALLOCATION, host_core().name, out)
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A built folder to spoil."""
    for path in (path for path in built.rglob("*") if path.is_file()):
        target = tmp_path / path.relative_to(built)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_host_library_equals_numpy(built: Path) -> None:
    kernels = Kernels(built)
    assert kernels.experts == tuple(ints.expert for ints in EXPERTS)
    for ints in EXPERTS:
        x = inputs(SHAPE.d_model)
        assert np.array_equal(kernels.forward(ints.expert, x), forward(ints, x))
        assert np.array_equal(kernels.forward(ints.expert, x[::2]), forward(ints, x[::2]))  # not contiguous
        assert kernels.forward(ints.expert, x[:0]).shape == (0, SHAPE.d_model)


def test_the_record_names_every_file_by_its_digest(built: Path) -> None:
    record = json.loads((built / "kernels.json").read_text())
    assert record["layout_version"] == LAYOUT_VERSION
    assert record["shape"] == {"d_model": 24, "d_hidden": 40}
    assert record["precisions"] == ["w2a8", "w3a4", "w4a8", "w8a8"]
    assert record["allocation"] == ALLOCATION.digest
    entries = [record["library"], *record["experts"].values()]
    assert all(sha256_file(built / entry["file"]) == entry["sha256"] for entry in entries)
    assert {entry["file"] for entry in entries} | {"kernels.json"} == set(contents(built))


@pytest.mark.parametrize("core", [pytest.param("cortex-a53", marks=pytest.mark.slow), host_core().name])
def test_building_twice_gives_the_same_bytes(export: Path, tmp_path: Path, core: str) -> None:
    runnable(CORES[core])
    once = build(export, ALLOCATION, core, tmp_path / "once")
    (tmp_path / "twice" / "weights").mkdir(parents=True)
    (tmp_path / "twice" / "weights" / "L9E9.bin").write_bytes(b"of an older build")
    twice = build(export, ALLOCATION, core, tmp_path / "twice")
    assert once == twice
    assert contents(tmp_path / "once") == contents(tmp_path / "twice")


def test_the_library_for_the_board_equals_numpy_under_emulation(export: Path, tmp_path: Path) -> None:
    core = CORES["cortex-a53"]
    emulator = runnable(core)
    record = build(export, ALLOCATION, core.name, tmp_path)
    program, library = tmp_path / "forward", tmp_path / record["library"]["file"]
    link = [core.compiler, str(RUNNER / "forward.c"), str(library), "-Wl,-rpath,$ORIGIN", "-o", str(program)]
    subprocess.run(link, check=True)
    x = inputs(SHAPE.d_model)
    x.tofile(tmp_path / "x")
    for ints in EXPERTS:
        files = [tmp_path / record["experts"][str(ints.expert)]["file"], tmp_path / "x", tmp_path / "y"]
        subprocess.run([*emulator, "-L", "/usr/aarch64-linux-gnu", str(program), *map(str, files)], check=True)
        assert np.array_equal(np.fromfile(tmp_path / "y", np.int8).reshape(x.shape), forward(ints, x))


def test_the_board_needs_neither_tvm_nor_torch() -> None:
    code = (
        "import sys; import wattbit.tvm_schedules.boardside; "
        "print(sorted({'tvm', 'torch', 'onnx', 'scipy'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_building_does_not_load_tvm_into_this_process(built: Path) -> None:
    code = "import sys; import wattbit.tvm_schedules.compile; print('tvm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_bad_inputs_are_refused(built: Path) -> None:
    kernels = Kernels(built)
    with pytest.raises(WattbitError, match=r"L7E7 is not among the 4 built experts"):
        kernels.forward(ExpertId(7, 7), inputs(24))
    with pytest.raises(WattbitError, match=r"inputs must be int8 of shape \[T, 24\], not int8 of \[19, 25\]"):
        kernels.forward(ExpertId(0, 0), inputs(25))
    with pytest.raises(WattbitError, match=r"not float32 of \[19, 24\]"):
        kernels.forward(ExpertId(0, 0), inputs(24).astype(np.float32))


def test_an_unknown_core_is_refused(export: Path, tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match=r"core must be one of cortex-a53, .*, not 'cortex-m4'"):
        build(export, ALLOCATION, "cortex-m4", tmp_path)


def test_an_export_for_another_allocation_is_refused(export: Path, tmp_path: Path) -> None:
    other = Allocation.of({ints.expert: 6 for ints in EXPERTS})
    with pytest.raises(WattbitError, match=r"holds L0E0 at w2a8, not w6a8; run `wattbit export`"):
        build(export, other, "cortex-a53", tmp_path)
    with pytest.raises(WattbitError, match=r"L5E5.npz does not exist"):
        build(export, Allocation.of({ExpertId(5, 5): 4}), "cortex-a53", tmp_path)


def test_experts_of_two_shapes_are_refused(tmp_path: Path) -> None:
    experts = [random_expert(Precision(4), ExpertShape(8 + i, 8), expert=ExpertId(0, i)) for i in range(2)]
    for ints in experts:
        ints.save(tmp_path / f"{ints.expert}.npz")
    with pytest.raises(WattbitError, match=r"L0E1 is ExpertShape\(d_model=9"):
        build(tmp_path, Allocation.of({ints.expert: 4 for ints in experts}), "cortex-a53", tmp_path / "out")


def test_an_absent_compiler_names_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WattbitError, match=r"run `apt-get install gcc-arm-linux-gnueabihf libc6-dev-armhf-cross`"):
        _ = CORES["cortex-a9"].compiler


def spoil_version(folder: Path) -> None:
    record: dict[str, Any] = json.loads((folder / "kernels.json").read_text())
    (folder / "kernels.json").write_text(json.dumps(record | {"layout_version": LAYOUT_VERSION + 1}))


def test_a_folder_of_another_layout_version_is_refused(copy: Path) -> None:
    spoil_version(copy)
    with pytest.raises(WattbitError, match=rf"has layout version {LAYOUT_VERSION + 1}, not {LAYOUT_VERSION}"):
        Kernels(copy)


def test_a_library_that_does_not_load_is_refused(copy: Path) -> None:
    (copy / "libwattbit_kernels.so").write_bytes(b"not ELF")
    with pytest.raises(WattbitError, match=r"does not load on this"):
        Kernels(copy)


def test_an_absent_weight_file_is_refused(copy: Path) -> None:
    (copy / "weights" / "L0E0.bin").unlink()
    with pytest.raises(WattbitError, match=r"L0E0.bin is absent; build the kernels again"):
        Kernels(copy)


@pytest.mark.parametrize("spoil", [lambda data: data[:-64], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_cut_or_altered_weight_file_is_refused_by_its_digest(copy: Path, spoil: Any) -> None:
    path = copy / "weights" / "L0E0.bin"
    path.write_bytes(spoil(path.read_bytes()))
    digest = sha256_file(path)[:16]
    with pytest.raises(WattbitError, match=rf"L0E0.bin has \d+ bytes of digest {digest}, not the \d+ bytes of digest"):
        Kernels(copy)


def words(data: bytes, index: int, value: int) -> bytes:
    """The file with word `index` of its header behind the magic replaced."""
    start = 8 + 4 * index
    return data[:start] + value.to_bytes(4, "little") + data[start + 4 :]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda data: data[:-64], "not a whole packed expert"),
        (lambda data: data + bytes(64), "not a whole packed expert"),
        (lambda data: data[:100], "not a whole packed expert"),
        (lambda data: b"X" + data[1:], "not a whole packed expert"),
        (lambda data: words(data, 5, 77), "not a whole packed expert"),  # act_bits
        (lambda data: words(data, 8, 40), "not a whole packed expert"),  # shift1
        (lambda data: words(data, 0, LAYOUT_VERSION + 1), "packed in another layout"),
        (lambda data: words(data, 1, 5), "packed in another layout"),  # vector_bytes
        (lambda data: words(data, 4, 5), "no kernel of its width"),  # weight_bits
        (lambda data: words(data, 15, W1_BYTES - 1), "not a whole packed expert"),
    ],
)
def test_a_weight_file_that_another_program_wrote_is_refused(copy: Path, spoil: Any, reason: str) -> None:
    """Its digest is right: the runner itself refuses it."""
    path = copy / "weights" / "L0E0.bin"
    path.write_bytes(spoil(path.read_bytes()))
    record = json.loads((copy / "kernels.json").read_text())
    record["experts"]["L0E0"]["sha256"] = sha256_file(path)
    (copy / "kernels.json").write_text(json.dumps(record))
    with pytest.raises(WattbitError, match=f"L0E0 did not run: .*{reason}"):
        Kernels(copy).forward(ExpertId(0, 0), inputs(24))


@pytest.mark.parametrize(
    ("machine", "line", "core"),
    [
        ("x86_64", "flags : fpu sse2", "x86-64"),
        ("x86_64", "flags : sse2 avx2 bmi2 fma", "x86-avx2"),
        ("x86_64", "flags : avx2 bmi2 fma avx512bw avx512vl avx512dq avx512cd avx512_vnni", "x86-vnni512"),
        ("x86_64", "flags : avx2 bmi2 fma avx512bw avx512vl avx512dq avx512cd", "x86-avx2"),
        ("aarch64", "Features : fp asimd", "cortex-a53"),
        ("aarch64", "Features : fp asimd asimddp", "cortex-a76"),
        ("armv7l", "Features : neon", "cortex-a9"),
    ],
)
def test_the_host_core_follows_from_the_flags(tmp_path: Path, machine: str, line: str, core: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\n")
    assert host_core(tmp_path / "cpuinfo", machine).name == core


def test_a_host_without_kernels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match=r"no kernels for a riscv64 host"):
        host_core(tmp_path / "absent", "riscv64")


def test_saved_integers_come_back(export: Path) -> None:
    """What build reads is what export wrote."""
    for ints in EXPERTS:
        loaded = ExpertInts.load(export / f"{ints.expert}.npz")
        assert np.array_equal(loaded.w1, ints.w1) and np.array_equal(loaded.w2, ints.w2)
