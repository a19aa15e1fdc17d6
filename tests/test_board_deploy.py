"""Deployment: whole, under its digest, or not at all; only what changed is sent; one at a time; and back again."""

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.board_stub import TARGET, FolderBoard, make_parts
from wattbit.board.agent.depot import Depot, Say
from wattbit.board.agent.depot import rollback as depot_rollback
from wattbit.board.agent.manifest import verify
from wattbit.board.agent.part import check_part
from wattbit.board.bundle import Parts, bundle_bytes, pack
from wattbit.board.deploy import deploy, holder, rollback, versions
from wattbit.board.program import running
from wattbit.errors import ToolError, WattbitError


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(parts: Parts, tmp_path: Path) -> Path:
    pack(parts, TARGET, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def other(parts: Parts, tmp_path: Path) -> Path:
    """Another version: one field of the manifest differs."""
    pack(replace(parts, top_k=1), TARGET, tmp_path / "other")
    return tmp_path / "other"


@pytest.fixture
def board(tmp_path: Path) -> FolderBoard:
    return FolderBoard(tmp_path / "home")


def visible(board: FolderBoard) -> set[str]:
    return {path.name for path in (board.home / "wattbit").iterdir() if not path.name.startswith(".")}


def objects(board: FolderBoard) -> list[Path]:
    return sorted((board.home / "wattbit/.objects").iterdir())


def test_the_board_holds_what_was_sent_and_switches_to_it(board: FolderBoard, bundle: Path) -> None:
    place = deploy(bundle, board)
    digest = verify(bundle)["digest"]
    assert place == f"wattbit/{digest}" and verify(board.home / place) == verify(bundle)
    assert visible(board) == {digest, "current"}
    assert verify(board.home / "wattbit/current")["digest"] == digest
    assert versions(board) == [digest]


def test_what_is_there_is_not_sent_again(board: FolderBoard, bundle: Path) -> None:
    place = deploy(bundle, board)
    first, board.sent = board.sent, 0
    assert deploy(bundle, board) == place
    assert first - board.sent >= bundle_bytes(verify(bundle))


def test_only_files_that_changed_are_sent(board: FolderBoard, bundle: Path, other: Path) -> None:
    deploy(bundle, board)
    first, board.sent = board.sent, 0
    deploy(other, board)
    assert first - board.sent >= bundle_bytes(verify(bundle)), "no file differs, the manifest does"
    one, two = (board.home / "wattbit" / verify(path)["digest"] / "accel.bit" for path in (bundle, other))
    assert one.stat().st_ino == two.stat().st_ino, "one file on the disk for both versions"


def test_the_last_two_versions_are_kept_and_rolled_back_to(
    board: FolderBoard, parts: Parts, bundle: Path, other: Path, tmp_path: Path
) -> None:
    pack(replace(parts, top_k=3), TARGET, tmp_path / "third")
    digests = [verify(path)["digest"] for path in (bundle, other, tmp_path / "third")]
    for path in (bundle, other, tmp_path / "third"):
        deploy(path, board)
    assert versions(board) == digests[1:] and visible(board) == {*digests[1:], "current"}
    assert rollback(board)["to"] == digests[1]
    assert verify(board.home / "wattbit/current")["digest"] == digests[1]
    assert rollback(board)["to"] == digests[2], "a second rollback undoes the first"
    deploy(other, board)
    assert verify(board.home / "wattbit/current")["digest"] == digests[1], "a kept version becomes current again"


@pytest.mark.parametrize("then", ["deploy", "rollback"])
def test_a_rollback_that_was_cut_short_is_known_by_the_link(
    board: FolderBoard, bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """As when power is lost between the switch of the link and the history."""
    old, new = (verify(path)["digest"] for path in (bundle, other))
    deploy(bundle, board)
    deploy(other, board)

    class CutError(Exception):
        pass

    def cut(*_: object) -> None:
        raise CutError

    with monkeypatch.context() as patched, pytest.raises(CutError):
        patched.setattr("wattbit.board.agent.depot.write_text", cut)
        depot_rollback(Depot(board.home / "wattbit"), {"holder": "me"}, io.BytesIO(), Say(io.BytesIO()))
    current = board.home / "wattbit/current"
    assert verify(current)["digest"] == old and versions(board) == [new, old]
    if then == "deploy":
        deploy(other, board)
    else:
        assert rollback(board) | {"place": ""} == {"place": "", "from": old, "to": new}
    assert verify(current)["digest"] == new and versions(board) == [old, new]


def test_a_first_version_has_none_before_it(board: FolderBoard, bundle: Path) -> None:
    deploy(bundle, board)
    with pytest.raises(WattbitError, match="folder-board: there is no earlier version on the board"):
        rollback(board)


def test_what_is_broken_there_is_sent_again(board: FolderBoard, bundle: Path) -> None:
    place = board.home / deploy(bundle, board)
    (place / "vectors.npz").write_bytes(b"")  # and so is the object: one file
    deploy(bundle, board)
    assert verify(place) == verify(bundle)


def test_a_broken_bundle_is_not_sent(board: FolderBoard, bundle: Path) -> None:
    (bundle / "accel.bit").write_bytes(b"")
    with pytest.raises(WattbitError, match=r"accel\.bit in the bundle is truncated"):
        deploy(bundle, board)
    assert board.sent == 0


def damage(times: int) -> Callable[..., int]:
    """Flip a bit of the first `times` large writes that pass."""
    left = [times]

    def write(write: Callable[[bytes], int], data: bytes) -> int:
        if left[0] and data.startswith(b"\x7fELF"):
            left[0] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        return write(data)

    return write


def test_damage_on_the_way_is_seen_and_sent_once_more(
    board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "write", damage(1))
    assert verify(board.home / deploy(bundle, board)) == verify(bundle)


def test_damage_that_stays_is_an_error_and_installs_nothing(
    board: FolderBoard, bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "write", damage(9))
    with pytest.raises(WattbitError, match=r"folder-board: accel-.*\.so arrived altered; deploy again"):
        deploy(bundle, board)
    assert visible(board) == set() and versions(board) == []


class LostError(Exception):
    pass


def test_a_connection_cut_in_the_upload_is_resumed(
    board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = (bundle / "vectors.npz").read_bytes()

    def cut(write: Callable[[bytes], int], data: bytes) -> int:
        if data == vectors:
            raise LostError
        return write(data)

    with monkeypatch.context() as patched:
        patched.setattr(board, "write", cut)
        with pytest.raises(LostError):
            deploy(bundle, board)
    assert visible(board) == set() and objects(board), "nothing is installed, whole files are kept"
    first, board.sent = board.sent, 0
    deploy(bundle, board)
    assert verify(board.home / "wattbit/current") == verify(bundle)
    assert first - board.sent > bundle_bytes(verify(bundle)) - 2 * len(vectors), "what was there is not sent again"


def test_two_cannot_deploy_at_once(board: FolderBoard, bundle: Path) -> None:
    with running(board, "wattbit.board.agent.depot") as program:
        program.send({"do": "deploy", "holder": "anna@lab", "manifest": verify(bundle)})
        assert program.read()["missing"]
        with pytest.raises(WattbitError, match="folder-board: anna@lab is changing what is deployed here; wait"):
            deploy(bundle, board)
    deploy(bundle, board)  # anna's connection is gone, and with it her lock
    assert (board.home / "wattbit/.lock").read_text() == holder()


def test_a_full_disk_is_one_error_and_leaves_nothing(bundle: Path, tmp_path: Path) -> None:
    """The depot's own code, on a disk that takes some files and then no more."""
    program = """
import errno, sys
from pathlib import Path
from wattbit.board.agent import depot
receive, left = depot.Depot.receive, [3]
def full(self, *rest):
    if not left[0]:
        raise OSError(errno.ENOSPC, "No space left on device")
    left[0] -= 1
    receive(self, *rest)
depot.Depot.receive = full
depot.main([])
"""

    class Full(FolderBoard):
        def start(self, args: list[str], stderr: Any, launch: bool = False) -> "subprocess.Popen[bytes]":
            boot = f"import sys; sys.stdin.buffer.readline()\n{program}"
            return subprocess.Popen([sys.executable, "-c", boot], cwd=self.home, stdin=-1, stdout=-1, stderr=stderr)

    board = Full(tmp_path / "home")
    with pytest.raises(WattbitError, match=r"the disk of folder-board is full: the bundle takes 0\.\d MB; free"):
        deploy(bundle, board)
    assert visible(board) == set() and objects(board) == []


def test_a_depot_that_dies_says_its_last_words(board: FolderBoard, bundle: Path) -> None:
    class Broken(FolderBoard):
        def start(self, args: list[str], stderr: Any, launch: bool = False) -> "subprocess.Popen[bytes]":
            return subprocess.Popen(
                [sys.executable, "-c", "raise SystemExit('python is broken')"], stdin=-1, stdout=-1, stderr=stderr
            )

    with pytest.raises(ToolError, match="depot failed with exit status 1: python is broken"):
        deploy(bundle, Broken(board.home / "x"))


def test_a_bundle_for_another_part_is_refused(
    board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATTBIT_PART", "xczu3eg")
    with pytest.raises(WattbitError, match="the bundle is for xc7z020clg400-1, this board has xczu3eg; build for this"):
        deploy(bundle, board)
    assert not (board.home / "wattbit").exists()
    monkeypatch.setenv("WATTBIT_PART", "xc7z020")
    deploy(bundle, board)


def test_a_real_bitstream_wants_to_know_the_part() -> None:
    manifest: dict[str, Any] = {"target": {"part": "xc7z020clg400-1"}, "toolchain": "vivado"}
    check_part(manifest, "xc7z020")
    with pytest.raises(WattbitError, match="does not say which part it has; start the agent as root"):
        check_part(manifest, None)
    check_part(manifest | {"toolchain": "virtual"}, None)


def test_objects_of_no_version_are_swept(tmp_path: Path) -> None:
    depot = Depot(tmp_path / "wattbit")
    with depot.lock("me"):
        (depot.objects / ("0" * 64)).write_bytes(b"left over")
        depot.sweep()
    assert not list(depot.objects.iterdir())
