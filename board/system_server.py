"""The process that holds a system tier board: it ends with the program that started it, and the machine ends with it.

`python -m wattbit.board.system_server IMAGE FOLDER` says on stdout when the machine runs, takes `reset` on stdin, and
ends when stdin does; with `--detached` it ends on SIGTERM instead.
"""

import json
import shutil
import signal
import sys
import threading
from pathlib import Path

from wattbit.board.qemu import HOST, Machine, overlay
from wattbit.errors import WattbitError

RESUME_S = 120.0


def serve(image: Path, folder: Path, detached: bool) -> None:
    """Run the board with a disk of its own, in `folder` with its keys, until the end."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    shutil.copy(image / "identity", folder / "identity")
    (folder / "identity").chmod(0o600)
    overlay(image / "disk.qcow2", folder / "disk.qcow2")
    with Machine(image, folder / "disk.qcow2") as machine:
        machine.resumed(RESUME_S)
        public = (image / "hostkey.pub").read_text(encoding="utf-8").strip()
        (folder / "known_hosts").write_text(f"[{HOST}]:{machine.port} {public}\n", encoding="utf-8")
        print(json.dumps({"port": machine.port, "machine": machine.pid}), flush=True)
        if detached:
            ended.wait()
            return
        for line in sys.stdin:
            if line.strip() == "reset":
                machine.reset()
                print(json.dumps({"reset": True}), flush=True)


def main() -> None:
    folder = Path(sys.argv[2])
    try:
        serve(Path(sys.argv[1]), folder, "--detached" in sys.argv[3:])
    except WattbitError as error:
        sys.exit(str(error))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
