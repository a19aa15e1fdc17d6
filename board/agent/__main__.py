"""`python3 -m wattbit.board.agent BUNDLE`: the agent, over standard input and output.

One JSON object a line each way: a request names its command in `cmd`, with the command's fields beside it; the reply
holds the result's fields, or `error`. Standard output belongs to the protocol alone; what libraries print goes to
standard error.
"""

import inspect
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from wattbit.board.agent.session import Reply, Session
from wattbit.errors import WattbitError

GRACE_S = 2.0  # for the last request of a host that closes its end at once

COMMANDS: dict[str, Callable[..., Reply]] = {
    "hello": Session.hello,
    "clock": Session.clock,
    "load": Session.load,
    "run": Session.run,
    "latency": Session.latency,
    "generate": Session.generate,
    "idle": Session.idle,
    "active": Session.active,
    "power": Session.power,
    "memory": Session.memory,
    "quit": Session.quit,
}


def answer(session: Session, line: str) -> Reply:
    """The reply to one request; an expected failure is a reply too, a bug is a traceback and the end."""
    try:
        request: Any = json.loads(line)
        name = request.pop("cmd", None) if isinstance(request, dict) else None
        if name not in COMMANDS:
            raise WattbitError(f"cmd must be one of {', '.join(COMMANDS)}, not {name}")
        command = COMMANDS[name]
        _check_fields(command, request)
        return command(session, **request)
    except json.JSONDecodeError as error:
        return {"error": f"not a JSON request: {error}"}
    except (WattbitError, OSError) as error:
        return {"error": str(error)}


def _check_fields(command: Callable[..., Reply], fields: dict[str, Any]) -> None:
    try:
        inspect.signature(command).bind(None, **fields)
    except TypeError as error:
        raise WattbitError(f"{command.__name__}: {error}") from None


def serve(session: Session, requests: Iterable[str], replies: TextIO) -> None:
    """Answer requests until `quit` or the end of input."""
    for line in requests:
        replies.write(json.dumps(answer(session, line), allow_nan=False) + "\n")
        replies.flush()
        if session.ended:
            return
    session.quit()


class Requests:
    """Lines of a stream, read by a thread that ends this process when the host goes away while a request is worked on.

    Nothing is left to be answered then, and a window may last long.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._idle = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            self._lines.put(line)
        self._lines.put("")
        if not self._idle.wait(GRACE_S):
            os._exit(1)

    def __iter__(self) -> Iterator[str]:
        while True:
            self._idle.set()
            line = self._lines.get()
            self._idle.clear()
            if not line:
                self._idle.set()
                return
            yield line


def main() -> None:
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as replies:
        os.dup2(2, 1)
        serve(Session(Path(sys.argv[1])), Requests(sys.stdin), replies)


if __name__ == "__main__":
    main()
