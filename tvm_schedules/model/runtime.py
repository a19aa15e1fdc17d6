"""The runtime through ctypes: on the board, and on the host for a host core. Standard library and NumPy only."""

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.plan import ExpertId
from wattbit.tvm_schedules.boardside import open_library
from wattbit.tvm_schedules.model import format as weights_file

Floats = NDArray[np.float64]
Int8 = NDArray[np.int8]
Elsewhere = Callable[[Sequence[ExpertId], Int8], Int8]
"""Outputs [N, D] of experts [N] of one layer, which do not run on these cores, for inputs [N, D]."""

_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, *[ctypes.POINTER(ctypes.c_int32)],
    *[ctypes.POINTER(ctypes.c_int8)] * 2,
)  # fmt: skip


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn: temperature 0 takes the likeliest; top_k 0 draws from all."""

    temperature: float = 0.0
    top_k: int = 0
    seed: int = 0


class Decoder:
    """One sequence of the model in a folder that `pack.build` wrote, as a context manager.

    threads: cores to use, by default all that this process may run on.
    check: compare every tensor's digest first; without it only those of header and table.
    """

    def __init__(self, folder: Path, threads: int | None = None, check: bool = True) -> None:
        record = read_json(folder / "model.json")
        try:
            path, wanted = folder / record["weights"]["file"], record["weights"]["digest"]
            library, core = folder / record["library"]["file"], record["core"]
        except (KeyError, TypeError):
            raise WattbitError(f"{folder / 'model.json'} is of no runtime's model; build or deploy it again") from None
        with weights_file.opened(path) as stream:  # once, so that what is checked is what is mapped
            self.config, entries, digest = weights_file.read_table(stream)
            if digest != wanted:
                raise WattbitError(
                    f"{path} is not the file of {folder / 'model.json'}; build or deploy the model again"
                )
            content = weights_file.mapped(stream)
            if check:
                weights_file.verify(stream, entries, content)
        self._library = _open(library, core)
        self._bytes = np.frombuffer(content, np.uint8)  # keeps the mapping alive
        self._model, self._session = ctypes.c_void_p(), ctypes.c_void_p()
        self._error: BaseException | None = None
        self._callback: Any = None
        count = threads or len(os.sched_getaffinity(0))
        try:
            self._call("wb_model_open", self._bytes.ctypes.data, self._bytes.nbytes, count, ctypes.byref(self._model))
            self.reset()
        except BaseException:
            self.close()  # its threads would stay
            raise

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free everything; the decoder is of no use after it."""
        self._library.wb_session_close(self._session)
        self._library.wb_model_close(self._model)
        self._session, self._model = ctypes.c_void_p(), ctypes.c_void_p()

    def reset(self) -> None:
        """Forget the tokens taken in."""
        self._library.wb_session_close(self._session)
        self._session = ctypes.c_void_p()
        self._call("wb_session_open", self._model, ctypes.byref(self._session))

    def place(self, experts: Iterable[ExpertId], elsewhere: Elsewhere) -> None:
        """Have these experts run by `elsewhere`, layer by layer; what it raises comes out of `feed`."""
        placed = np.zeros((self.config.layers, self.config.experts), np.uint8)
        for expert in experts:
            placed[expert.layer, expert.expert] = 1
        width = self.config.width

        def run(_: Any, layer: int, rows: int, chosen: Any, x: Any, y: Any) -> int:
            try:
                names = [ExpertId(layer, chosen[row]) for row in range(rows)]
                inputs = np.ctypeslib.as_array(x, (rows, width)).copy()
                np.ctypeslib.as_array(y, (rows, width))[:] = elsewhere(names, inputs)
            except BaseException as error:  # noqa: BLE001  # C stands between here and those who can handle it
                self._error = error
                return -1
            return 0

        self._callback = _CALLBACK(run)  # kept, for C has only its address
        self._call("wb_model_place", self._model, placed.ctypes.data, self._callback, None)

    @property
    def position(self) -> int:
        """Tokens taken in so far."""
        return int(self._library.wb_session_position(self._session))

    def feed(self, tokens: Sequence[int]) -> Floats:
        """Take tokens in; logits [V] of what follows the last of them."""
        given = np.array(tokens, np.int32)
        logits: Floats = np.empty(self.config.vocabulary, np.float64)
        self._call("wb_session_feed", self._session, given.ctypes.data, len(given), logits.ctypes.data)
        return logits

    def sample(self, logits: Floats, sampling: Sampling, state: ctypes.c_uint64) -> int:
        """One token; `state` is a generator's, which begins as the seed."""
        token = ctypes.c_int32()
        settings = ctypes.c_double(sampling.temperature), sampling.top_k
        self._call("wb_sample", logits.ctypes.data, len(logits), *settings, ctypes.byref(state), ctypes.byref(token))
        return token.value

    def generate(self, prompt: Sequence[int], count: int, sampling: Sampling | None = None) -> Iterator[int]:
        """The prompt's continuation of up to `count` tokens, each as soon as it is known; it ends with the context."""
        drawn = sampling or Sampling()
        state = ctypes.c_uint64(drawn.seed)
        logits = self.feed(prompt)
        for left in range(count, 0, -1):
            token = self.sample(logits, drawn, state)
            yield token
            if left == 1 or self.position == self.config.context:
                return
            logits = self.feed([token])

    def _call(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, name)(*arguments) == 0:
            return
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        raise WattbitError(self._library.wb_model_error().decode())


def _open(path: Path, core: str) -> Any:
    library = open_library(path, core)
    pointer, word = ctypes.c_void_p, ctypes.c_int32
    for name, arguments in {
        "wb_model_open": [pointer, ctypes.c_uint64, word, pointer],
        "wb_model_place": [pointer, pointer, _CALLBACK, pointer],
        "wb_session_open": [pointer, pointer],
        "wb_session_feed": [pointer, pointer, word, pointer],
        "wb_sample": [pointer, word, ctypes.c_double, word, pointer, pointer],
        "wb_session_position": [pointer],
    }.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, word
    for name in ("wb_model_close", "wb_session_close"):
        getattr(library, name).argtypes, getattr(library, name).restype = [pointer], None
    library.wb_model_error.restype = ctypes.c_char_p
    return library
