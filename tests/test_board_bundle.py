"""Bundles: whole or absent, the same from the same parts, refused when altered, free of the answers."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.board_stub import DIGEST, EXPERTS, TARGET, make_parts, places
from wattbit.board.agent import bitstream
from wattbit.board.agent.manifest import read_manifest, seal, verify
from wattbit.board.bundle import Parts, pack
from wattbit.board.carried import carried_files
from wattbit.board.overlay import handoff
from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, ExpertId
from wattbit.shell import INSTANCE, VLNV, Register


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(parts: Parts, tmp_path: Path) -> Path:
    pack(parts, TARGET, tmp_path / "bundle")
    return tmp_path / "bundle"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_parts_give_the_same_bytes(parts: Parts, bundle: Path, tmp_path: Path) -> None:
    pack(parts, TARGET, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(bundle)


def test_manifest_describes_every_file(bundle: Path) -> None:
    assert set(verify(bundle)["files"]) == set(contents(bundle)) - {"manifest.json"}


def test_manifest_places_every_expert(bundle: Path) -> None:
    experts = verify(bundle)["experts"]
    assert {ExpertId.parse(name): (e["engine"], e["set"]) for name, e in experts.items()} == places()
    assert [experts[f"L0E{i}"]["precision"] for i in range(EXPERTS)] == ["w4a8", "w8a8"] * 3
    assert experts["L0E0"]["x_exp"] == -4 and experts["L0E0"]["y_exp"] == -5


def test_the_answers_stay_on_the_host(bundle: Path) -> None:
    with np.load(bundle / "vectors.npz") as archive:
        assert set(archive) == {"layer", "expert", "x"}


def test_a_new_bundle_replaces_the_old_one(parts: Parts, bundle: Path) -> None:
    (bundle / "left-over").touch()
    manifest = pack(replace(parts, top_k=1), TARGET, bundle)
    assert verify(bundle) == manifest and not (bundle / "left-over").exists()


def test_an_interrupted_bundle_leaves_nothing(
    parts: Parts, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = contents(bundle)
    monkeypatch.setattr("wattbit.board.bundle.seal", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(parts, TARGET, bundle)
    assert contents(bundle) == before and [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("name", ["vectors.npz", f"accel-{DIGEST}.so", "code/wattbit/board/agent/session.py"])
def test_a_truncated_file_is_refused(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1])
    with pytest.raises(WattbitError, match=f"{name} in the bundle is truncated .{len(data) - 1} of {len(data)} bytes"):
        verify(bundle)


def test_an_altered_file_is_refused(bundle: Path) -> None:
    data = bytearray((bundle / "accel.bit").read_bytes())
    data[-20] ^= 1
    (bundle / "accel.bit").write_bytes(data)
    with pytest.raises(WattbitError, match=r"accel\.bit in the bundle is altered.*deploy it again"):
        verify(bundle)


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "accel.hwh").unlink()
    with pytest.raises(WattbitError, match=r"the bundle lacks accel\.hwh"):
        verify(bundle)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc/passwd", "arm/../../x"])
def test_a_manifest_that_names_files_elsewhere_is_refused(bundle: Path, name: str) -> None:
    content = read_json(bundle / "manifest.json")
    del content["digest"]
    content["files"][name] = content["files"]["accel.bit"]
    write_json(bundle / "manifest.json", seal(content))
    with pytest.raises(WattbitError, match=f"names {name}, which is outside of the bundle"):
        verify(bundle)


def test_an_altered_manifest_is_refused(bundle: Path) -> None:
    write_json(bundle / "manifest.json", read_json(bundle / "manifest.json") | {"toolchain": "vivado"})
    with pytest.raises(WattbitError, match="was altered"):
        verify(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}'])
def test_a_truncated_manifest_is_refused(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(WattbitError, match="truncated or no manifest"):
        verify(bundle)


def test_a_bundle_of_an_earlier_format_is_refused(bundle: Path) -> None:
    """One that names no clock could be clocked too high."""
    content = {name: value for name, value in read_json(bundle / "manifest.json").items() if name != "digest"}
    write_json(bundle / "manifest.json", seal(content | {"format": 1}))
    with pytest.raises(WattbitError, match=r"has bundle format 1, not 2; build and deploy again"):
        verify(bundle)


def test_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match=r"holds no manifest\.json"):
        read_manifest(tmp_path)


def test_another_allocation_is_refused(parts: Parts, tmp_path: Path) -> None:
    other = replace(parts, allocation=Allocation.of(dict.fromkeys(places(), 4)))
    with pytest.raises(WattbitError, match="L0E1 is built as w8a8, allocated another width"):
        pack(other, TARGET, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_missing_expert_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match="L0E0 is in the design or the allocation, not in both"):
        pack(replace(parts, allocation=Allocation.of({ExpertId(0, 1): 8})), TARGET, tmp_path / "bundle")


def test_a_board_without_logic_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match="has no programmable logic"):
        pack(parts, replace(TARGET, part=None), tmp_path / "bundle")


def test_carried_code_needs_nothing_else_of_wattbit(bundle: Path) -> None:
    """The agent's modules import from the bundle's code alone, with this checkout out of reach."""
    program = (
        "import sys, wattbit.board.agent.session, wattbit.board.agent.__main__\n"
        "names = [m.__file__ for n, m in sys.modules.items() if n.split('.')[0] == 'wattbit']\n"
        "print('\\n'.join(names))"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env={"PYTHONPATH": str(bundle / "code")},
        cwd=bundle,
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(name).is_relative_to(bundle / "code") for name in done.stdout.split())


def test_carried_code_holds_no_host_module() -> None:
    names = set(carried_files(["wattbit.board.agent.__main__"]))
    assert "wattbit/board/agent/simdevice.py" in names, "imports inside functions are followed"
    assert not {"wattbit/board/ssh.py", "wattbit/board/bundle.py", "wattbit/cli.py"} & names


def test_verification_runs_by_itself(bundle: Path) -> None:
    command = [sys.executable, "-B", "-m", "wattbit.board.agent.manifest", str(bundle)]
    environment = {"PYTHONPATH": str(bundle / "code")}
    done = subprocess.run(command, env=environment, cwd=bundle, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, verify(bundle)["digest"])
    (bundle / "vectors.npz").write_bytes(b"")
    done = subprocess.run(command, env=environment, cwd=bundle, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("vectors.npz in the bundle is truncated")
    assert len(done.stderr.splitlines()) == 1


def test_bitstream_names_its_design(tmp_path: Path) -> None:
    (tmp_path / "accel.bit").write_bytes(bitstream.encode(DIGEST, "7z020clg400-1"))
    assert bitstream.read_digest(tmp_path / "accel.bit") == DIGEST


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, bitstream.encode(DIGEST, "7z020")[:-20]])
def test_another_bitstream_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "accel.bit").write_bytes(data)
    with pytest.raises(WattbitError, match="not a simulated bitstream"):
        bitstream.read_digest(tmp_path / "accel.bit")


@pytest.mark.parametrize(
    ("part", "family", "base"),
    [("xc7z020clg400-1", "processing_system7", 0x40000000), ("xck26-sfvc784-2LV-c", "zynq_ultra_ps_e", 0xA0000000)],
)
def test_handoff_describes_the_shell(part: str, family: str, base: int) -> None:
    modules = {m.get("INSTANCE"): m for m in ElementTree.fromstring(handoff(part, 125.0)).iter("MODULE")}
    shell, processor = modules[INSTANCE], modules[f"{family}_0"]
    assert shell.get("VLNV") == VLNV
    assert [register.get("NAME") for register in shell.iter("REGISTER")] == list(Register.__members__)
    ranges = [int(str(memory.get("BASEVALUE")), 16) for memory in processor.iter("MEMRANGE")]
    assert ranges == [base]


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(WattbitError, match="xcvc1902 is neither"):
        handoff("xcvc1902", 100.0)


def test_manifest_is_readable_json(bundle: Path) -> None:
    assert json.loads((bundle / "manifest.json").read_text())["design"]["digest"] == DIGEST
