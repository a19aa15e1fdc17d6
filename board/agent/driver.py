"""Driver of the accelerator shell, the same on real and on virtual boards.

It needs something with `read(offset)` and `write(offset, value)`, which a pynq IP and a pynq MMIO both are, and
pynq's `allocate`; it imports neither.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.shell import (
    DONE,
    ERRORS,
    IDENTITY,
    START,
    STREAM_BYTES,
    WORD_BITS,
    Register,
    digest_word,
    engine_cycles,
    interleaved,
    packets,
)


class Registers(Protocol):
    def read(self, offset: int) -> int: ...

    def write(self, offset: int, value: int) -> None: ...


class Driver:
    """Launches of one loaded design.

    allocate: `pynq.allocate`, or what acts like it: a NumPy array with `device_address`, `flush` and `invalidate`.
    digest: the design that is expected behind the registers.
    timeout_s: wall time after which a launch counts as hung.
    images: files of the weights that the design streams from memory, one for each of its streams. They are put there
    once; each launch reads what it needs.
    """

    def __init__(
        self,
        registers: Registers,
        allocate: Callable[..., Any],
        digest: str,
        timeout_s: float,
        images: Sequence[Path] = (),
    ) -> None:
        self._registers = registers
        self._allocate = allocate
        self._timeout_s = timeout_s
        self._buffers: dict[tuple[int, int], tuple[Any, Any]] = {}  # packets and results, by slot and number
        self._loaded: dict[int, tuple[Any, Any, NDArray[np.int64]]] = {}  # by slot: packets, results, their order
        if self._read("ID") != IDENTITY:
            raise WattbitError(f"no wattbit shell answers: ID is {self._read('ID'):#010x}, not {IDENTITY:#010x}")
        if self._read("DIGEST") != digest_word(digest):
            raise WattbitError(
                f"the loaded design is {self._read('DIGEST'):08x}, not {digest_word(digest):08x} of the manifest; "
                "build and deploy again"
            )
        self.d_model = self._read("D_MODEL")
        self.engines = self._read("ENGINES")
        self._engine_cycles = engine_cycles(lambda offset: int(registers.read(offset)), self.engines)
        if self._read("STREAMS") != len(images):
            raise WattbitError(
                f"the loaded design streams the weights of {self._read('STREAMS')} engines, the bundle holds images "
                f"for {len(images)}; build and deploy again"
            )
        self._images = [self._load_images(stream, path) for stream, path in enumerate(images)]

    def _read(self, name: str) -> int:
        return int(self._registers.read(Register[name]))

    def _write(self, name: str, value: int) -> None:
        self._registers.write(Register[name], value)

    def _load_images(self, stream: int, path: Path) -> Any:
        """Put a stream's images where it reads them; the buffer, which must live as long as they are needed."""
        content = np.fromfile(path, np.uint8)
        stride = int(self._registers.read(Register.WEIGHTS_STRIDE + STREAM_BYTES * stream))
        if not content.size or content.size % stride:
            raise WattbitError(
                f"{path.name} has {content.size} bytes, not whole images of {stride}; build and deploy again"
            )
        buffer = self._allocate(content.shape, np.uint8)
        buffer[:] = content
        buffer.flush()
        self._registers.write(Register.WEIGHTS_ADDR + STREAM_BYTES * stream, buffer.device_address)
        return buffer

    def load(self, engine: NDArray[np.int64], index: NDArray[np.int64], x: NDArray[np.int8], slot: int = 0) -> None:
        """Put inputs x [N, D], each for one engine and set, where the accelerator reads them, `interleaved`.

        Each slot keeps its own, to be launched again and again.
        """
        words = packets(engine, index, x)
        if x.shape[1] != self.d_model:
            raise WattbitError(f"the design takes vectors of {self.d_model}, not {x.shape[1]}")
        key = slot, len(x)
        if key not in self._buffers:
            self._buffers[key] = self._allocate(words.shape, np.uint8), self._allocate(x.shape, np.int8)
        inputs, outputs = self._buffers[key]
        order = interleaved(engine, index, self._engine_cycles)
        inputs[:] = words[order]
        inputs.flush()
        self._loaded[slot] = inputs, outputs, order

    def streamed_bits(self, engine: NDArray[np.int64], index: NDArray[np.int64]) -> int:
        """Bits of weights that a launch for these engines and sets [N] reads from memory: each expert's once."""
        engines, _ = np.unique(np.stack([engine, index]), axis=1)
        return WORD_BITS * int(self._engine_cycles[engines, 1].sum())  # a load cycle moves a word

    def launch(self, slot: int = 0) -> int:
        """Run what `load` put into a slot once; the clock cycles from start to done."""
        if slot not in self._loaded:
            raise WattbitError("nothing is loaded to launch; load vectors first")
        inputs, outputs, _ = self._loaded[slot]
        self._write("COUNT", len(inputs))
        self._write("IN_ADDR", inputs.device_address)
        self._write("OUT_ADDR", outputs.device_address)
        self._write("CTRL", START)
        deadline_s = time.monotonic() + self._timeout_s
        while not self._read("CTRL") & DONE:
            if time.monotonic() > deadline_s:
                raise WattbitError(
                    f"the accelerator did not finish {len(inputs)} packets in {self._timeout_s:g} s; "
                    "load the design again"
                )
        if error := self._read("ERROR"):
            raise WattbitError(f"the accelerator reports error {error}: {ERRORS.get(error, 'unknown')}")
        return self._read("CYCLES_LO") | self._read("CYCLES_HI") << 32

    def results(self, slot: int = 0) -> NDArray[np.int8]:
        """Outputs [N, D] of a slot's last launch."""
        _, outputs, order = self._loaded[slot]
        outputs.invalidate()
        results = np.empty(outputs.shape, np.int8)
        results[order] = outputs
        return results

    def run(
        self, engine: NDArray[np.int64], index: NDArray[np.int64], x: NDArray[np.int8]
    ) -> tuple[NDArray[np.int8], int]:
        """Outputs [N, D] and cycles of inputs x [N, D], each for one engine and set."""
        self.load(engine, index, x)
        cycles = self.launch()
        return self.results(), cycles
