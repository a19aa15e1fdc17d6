"""Several boards at once: jobs are spread over them; one that fails is dropped, its work given to the others."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from wattbit.errors import WattbitError

Job = TypeVar("Job")
Result = TypeVar("Result")
POLL_S = 0.2


class Fleet(Generic[Job, Result]):
    """The boards' threads and what they share.

    failures: why boards were dropped, by board.
    """

    def __init__(self, jobs: Sequence[Job], work: Callable[[Job, str], Result]) -> None:
        self._work = work
        self._waiting = deque(enumerate(jobs))
        self._results: dict[int, Result] = {}
        self._count = len(jobs)
        self._change = threading.Condition()
        self._fatal: BaseException | None = None
        self.failures: dict[str, WattbitError] = {}

    def run(self, boards: Sequence[str]) -> list[Result]:
        """Results of all jobs, in their order; WattbitError, naming every board's reason, when none is left for one.

        The only board's reason is its own error.
        """
        threads = [threading.Thread(target=self._serve, args=(board,), daemon=True) for board in boards]
        for thread in threads:
            thread.start()
        with self._change:
            while len(self._results) < self._count and any(thread.is_alive() for thread in threads) and not self._fatal:
                self._change.wait(POLL_S)  # a wait without end would not heed Ctrl-C
        if self._fatal:
            raise self._fatal
        if len(self._results) < self._count:
            if len(boards) == 1:
                raise self.failures[boards[0]]
            reasons = "; ".join(f"{board}: {error}" for board, error in self.failures.items())
            raise WattbitError(f"no board is left for {self._count - len(self._results)} of {self._count}: {reasons}")
        return [self._results[number] for number in range(self._count)]

    def _serve(self, board: str) -> None:
        """One board's thread: take jobs until none is left or the board fails."""
        while True:
            with self._change:
                while not self._waiting and len(self._results) < self._count and not self._fatal:
                    self._change.wait(POLL_S)  # another board may yet fail and give its job back
                if not self._waiting or self._fatal:
                    return
                number, job = self._waiting.popleft()
            try:
                result = self._work(job, board)
            except WattbitError as error:
                with self._change:
                    self.failures[board] = error
                    self._waiting.appendleft((number, job))
                    self._change.notify_all()
                return
            except BaseException as error:  # noqa: BLE001  (raised again in the main thread)
                with self._change:
                    self._fatal = error
                    self._change.notify_all()
                return
            with self._change:
                self._results[number] = result
                self._change.notify_all()


def spread(
    jobs: Sequence[Job], boards: Sequence[str], work: Callable[[Job, str], Result]
) -> tuple[list[Result], Mapping[str, WattbitError]]:
    """Results of `work(job, board)` for all jobs, in their order, and why boards were dropped."""
    fleet = Fleet(jobs, work)
    return fleet.run(boards), fleet.failures
