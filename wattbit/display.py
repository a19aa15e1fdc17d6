"""How a command shows its progress: a live bar on a terminal; elsewhere a line a stage, and a few of a long one."""

import signal
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

LINES_APART_S = 30.0
"""Where there is no terminal, a stage says this often how far it is."""


class Display:
    """Shows stages one after the other on stderr; call it as a `wattbit.progress.Progress` while one runs.

    It also minds Ctrl-C: some libraries swallow KeyboardInterrupt (a bare `except` around an import is enough), so what
    was interrupted is interrupted again whenever it next says how far it is.
    """

    def __init__(self) -> None:
        self.console = Console(file=sys.stderr, highlight=False)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<9}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None
        self.stage, self.said_s = "", time.monotonic()
        self.interrupted = False

    def __enter__(self) -> Self:
        self.handler = signal.signal(signal.SIGINT, self.interrupt)
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        signal.signal(signal.SIGINT, self.handler)
        if self.interrupted and isinstance(error, Exception):  # some libraries' imports fail in place of it
            raise KeyboardInterrupt from error

    def interrupt(self, *_: object) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)  # a line stays one where output goes to a file

    def begin(self, stage: str, title: str) -> None:
        self.heed()
        if self.task is not None:
            self.bar.remove_task(self.task)
        self.stage, self.said_s = stage, time.monotonic()
        self.task = self.bar.add_task(title, total=None, stage=stage)

    def heed(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt

    def __call__(self, what: str, done: int, total: int) -> None:
        self.heed()
        if self.task is not None:
            self.bar.update(self.task, description=what, completed=done, total=total or None)
        if not self.console.is_terminal and time.monotonic() - self.said_s >= LINES_APART_S:
            self.said_s = time.monotonic()
            self.say(f"  {self.stage:<8} {what}" + (f", {done} of {total}" if total else ""))
