"""A board over SSH: what goes over arrives unchanged, and every way to fail says what to do."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.board_support import cache_or_skip
from wattbit.board.ssh import Connection
from wattbit.board.virtual import VirtualBoard
from wattbit.errors import ToolError, WattbitError


@pytest.fixture(scope="module")
def board() -> Iterator[VirtualBoard]:
    with VirtualBoard(cache_or_skip()) as running:
        yield running


@pytest.fixture(scope="module")
def connection(board: VirtualBoard) -> Iterator[Connection]:
    with board.connection() as opened:
        yield opened


def key_pair(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@pytest.mark.parametrize("argument", ["a b", "$HOME `id` \"'\\", "", "*", "two\nlines", "ünï"])
def test_arguments_arrive_as_they_are(connection: Connection, argument: str) -> None:
    assert connection.run(["printf", "%s|", argument, "end"]) == f"{argument}|end|".encode()


def test_bytes_go_through_unchanged(connection: Connection) -> None:
    data = bytes(range(256)) * 4096  # 1 MiB: more than any buffer on the way
    assert connection.run(["cat"], input=data) == data


def test_a_remote_failure_carries_command_status_and_stderr(connection: Connection) -> None:
    with pytest.raises(ToolError, match=r"^sh failed with exit status 3: broken; this was on 127\.0\.0\.1$") as caught:
        connection.run(["sh", "-c", "echo broken >&2; exit 3"])
    assert caught.value.command == ["sh", "-c", "echo broken >&2; exit 3"]
    assert caught.value.status == 3
    assert caught.value.stderr == "broken\n"


def test_a_remote_status_of_255_is_not_taken_for_a_lost_board(connection: Connection) -> None:
    with pytest.raises(ToolError) as caught:
        connection.run(["sh", "-c", "exit 255"])
    assert caught.value.status == 255


def test_a_command_that_hangs_is_given_up(connection: Connection) -> None:
    with pytest.raises(WattbitError, match=r"sleep on 127\.0\.0\.1 did not finish in 0\.5 s"):
        connection.run(["sleep", "60"], timeout_s=0.5)


def test_a_process_on_the_board_talks_in_lines_behind_the_launch_prefix(connection: Connection) -> None:
    process = connection.popen(["sh", "-c", 'echo "$BOARD $0 $1"; cat', "zero", "a  b"])
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "virtual zero a  b\n"  # BOARD comes from /etc/profile.d
    for line in ("hello\n", "wörld\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline() == line
    process.stdin.close()
    assert process.wait(10) == 0


def test_a_host_key_that_does_not_match_is_refused(board: VirtualBoard, tmp_path: Path) -> None:
    other = key_pair(tmp_path / "other").with_suffix(".pub").read_text()
    known_hosts = tmp_path / "known hosts"
    known_hosts.write_text(f"[{board.host}]:{board.port} {other}")
    with (
        pytest.raises(WattbitError, match=r"host key of .*127.* does not match .*known hosts.*ssh-keygen -f .* -R "),
        replace(board.connection(), known_hosts=known_hosts),
    ):
        pass


def test_an_unknown_host_key_is_refused(board: VirtualBoard, tmp_path: Path) -> None:
    known_hosts = tmp_path / "none"
    with (
        pytest.raises(WattbitError, match=r"host key of \[127\.0\.0\.1\]:\d+ is not in .*none; connect once"),
        replace(board.connection(), known_hosts=known_hosts),
    ):
        pass
    assert not known_hosts.exists()


def test_a_refused_key_is_said(board: VirtualBoard, tmp_path: Path) -> None:
    stranger = replace(board.connection(), identity=key_pair(tmp_path / "stranger"))
    with pytest.raises(WattbitError, match=r"root@\[127\.0\.0\.1\]:\d+ refused every key offered"), stranger:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_board_that_does_not_answer_is_tried_until_the_deadline() -> None:
    nobody = Connection("127.0.0.1", free_port(), deadline_s=1.5, config=Path(os.devnull))
    start = time.monotonic()
    with pytest.raises(WattbitError, match=r"cannot be reached \(.*refused.*\); check its power"), nobody:
        pass
    assert time.monotonic() - start >= 1.0, "it was tried again"


def test_a_server_that_says_nothing_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        lost = Connection("127.0.0.1", port, connect_timeout_s=1, deadline_s=0, config=Path(os.devnull))
        with pytest.raises(WattbitError, match=r"cannot be reached"), lost:
            pass


def test_a_board_that_goes_away_is_said() -> None:
    with VirtualBoard(cache_or_skip()) as board, board.connection() as connection:
        process = connection.popen(["cat"])
        board.close()
        assert process.wait(10) != 0
        with pytest.raises(WattbitError, match=r"cannot be reached"):
            connection.run(["true"])


def test_a_connection_that_is_not_open_is_said() -> None:
    with pytest.raises(WattbitError, match="use it in a with block"):
        Connection("127.0.0.1").run(["true"])


def test_a_long_temporary_folder_is_no_obstacle(
    board: VirtualBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address of a socket has 108 bytes: below a longer folder there is no shared connection."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with board.connection() as opened:
        assert opened.run(["echo", "here"]) == b"here\n"
