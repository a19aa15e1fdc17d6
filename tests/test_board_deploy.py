"""Deployment: a bundle lies on the board whole, under its digest, or not at all."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.board_stub import TARGET, FolderBoard, make_parts
from wattbit.board.agent.manifest import verify
from wattbit.board.bundle import Parts, pack
from wattbit.board.deploy import deploy, remote_folder
from wattbit.errors import ToolError, WattbitError
from wattbit.progress import Progress, silent


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture
def bundle(parts: Parts, tmp_path: Path) -> Path:
    pack(parts, TARGET, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def board(tmp_path: Path) -> FolderBoard:
    return FolderBoard(tmp_path / "home")


def after_upload(board: FolderBoard, action: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `action` happen to the uploaded folder before the board's `put` returns."""
    put = board.put

    def altered(local: Path, remote: str, progress: Progress = silent) -> None:
        put(local, remote, progress)
        action(board.home / remote)

    monkeypatch.setattr(board, "put", altered)


def test_the_board_holds_what_was_sent(board: FolderBoard, bundle: Path) -> None:
    place = deploy(bundle, board)
    assert place == remote_folder(verify(bundle)["digest"])
    assert verify(board.home / place) == verify(bundle)
    assert [path.name for path in (board.home / "wattbit").iterdir()] == [Path(place).name]


def test_what_is_there_is_not_sent_again(board: FolderBoard, bundle: Path) -> None:
    assert deploy(bundle, board) == deploy(bundle, board)
    assert board.uploads == 1


def test_what_is_broken_there_is_sent_again(board: FolderBoard, bundle: Path) -> None:
    place = board.home / deploy(bundle, board)
    (place / "vectors.npz").write_bytes(b"")
    deploy(bundle, board)
    assert board.uploads == 2 and verify(place) == verify(bundle)


def test_a_broken_bundle_is_not_sent(board: FolderBoard, bundle: Path) -> None:
    (bundle / "accel.bit").write_bytes(b"")
    with pytest.raises(WattbitError, match=r"accel\.bit in the bundle is truncated"):
        deploy(bundle, board)
    assert board.uploads == 0


def test_damage_on_the_way_is_seen_on_the_board(
    board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_upload(board, lambda folder: (folder / "accel.bit").unlink(), monkeypatch)
    with pytest.raises(WattbitError, match=r"the bundle lacks accel\.bit"):
        deploy(bundle, board)
    assert not list((board.home / "wattbit").iterdir())


def test_an_interrupted_upload_leaves_nothing(
    board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        after_upload(board, interrupt, patched)
        with pytest.raises(KeyboardInterrupt):
            deploy(bundle, board)
    assert not list((board.home / "wattbit").iterdir())
    deploy(bundle, board)


def test_a_lost_board_is_resumed(board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upload ends with the connection, so that nothing can be removed; the next deployment starts afresh."""

    def lose(folder: Path) -> None:
        def lost(args: list[str]) -> bytes:
            raise WattbitError("folder-board cannot be reached")

        patched.setattr(board, "run", lost)
        (folder / "left-over").touch()
        raise WattbitError("folder-board was lost")

    with monkeypatch.context() as patched:
        after_upload(board, lose, patched)
        with pytest.raises(WattbitError, match="was lost"):
            deploy(bundle, board)
    place = board.home / deploy(bundle, board)
    assert [path.name for path in (board.home / "wattbit").iterdir()] == [place.name]
    assert not (place / "left-over").exists()


def test_a_full_disk_is_one_error(board: FolderBoard, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise ToolError(["tar"], 2, "tar: x: Cannot write: No space left on device\ntar: Exiting")

    after_upload(board, full, monkeypatch)
    with pytest.raises(WattbitError, match=r"the disk of folder-board is full: the bundle takes 0\.\d MB; remove"):
        deploy(bundle, board)
    assert not list((board.home / "wattbit").iterdir())
