"""A pynq device whose programmable logic is a simulation. Only virtual boards import this file.

pynq finds it by `_probe_`, reads the overlay's `.hwh`, sets the clocks and downloads the `.bit` as on a board. The
bitstream names a design; `download` opens the simulated accelerator of that design from the same folder.

Simulated time passes in `wb_run`, which a read of CTRL calls while a launch is under way: software that polls for
`done`, as it must on a board, moves the clock. Buffers have a shadow, as a CPU cache: without `flush` the accelerator
reads what was there before, without `invalidate` software does.
"""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pynq.buffer import PynqBuffer
from pynq.pl_server.device import Device
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser

from wattbit.board.agent.bitstream import read_digest
from wattbit.board.agent.simulation import Simulation
from wattbit.errors import WattbitError
from wattbit.shell import INSTANCE, START, Register

MEMORY_BASE = 0x10000000
MEMORY_BYTES = 256 << 20  # takes room as it is written
PAGE_BYTES = 4096
POLL_CYCLES = 4096

# What the PS leaves in the clock registers that pynq reads: PLLs of 1000 MHz from 50 MHz (Zynq-7000: IO, ARM, DDR) and
# 1500 MHz from 33.333 MHz (ZynqMP: IO, RPLL, APLL, DPLL, VPLL), every divider 10.
ZYNQ_CLOCKS = dict.fromkeys((0xF8000100, 0xF8000104, 0xF8000108), 20 << 12) | dict.fromkeys(
    (0xF8000120, 0xF8000170, 0xF8000180, 0xF8000190, 0xF80001A0), 10 << 8 | 1 << 20
)
ZYNQMP_CLOCKS = dict.fromkeys((0xFF5E0020, 0xFF5E0030, 0xFD1A0020, 0xFD1A002C, 0xFD1A0038), 45 << 8) | dict.fromkeys(
    (0xFF5E00C0, 0xFF5E00C4, 0xFF5E00C8, 0xFF5E00CC, 0xFD1A0060), 10 << 8 | 1 << 16
)


class RegisterWindow:
    """Registers from `base` on, as the array of 32-bit words that pynq's MMIO and RegisterMap index."""

    dtype = np.dtype(np.uint32)
    itemsize = 4
    ndim = 1

    def __init__(self, device: "SimulatedDevice", base: int, words: int) -> None:
        self._device = device
        self._base = base
        self._words = words

    @property
    def shape(self) -> tuple[int]:
        return (self._words,)

    def __len__(self) -> int:
        return self._words

    def __iter__(self) -> Iterator[np.uint32]:
        return (self[index] for index in range(self._words))

    def view(self, dtype: DTypeLike = np.uint32) -> "RegisterWindow":
        if np.dtype(dtype) != self.dtype:
            raise WattbitError(f"the simulated registers are read and written as 32-bit words, not {np.dtype(dtype)}")
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            start, stop, _ = index.indices(self._words)
            return RegisterWindow(self._device, self._base + 4 * start, max(0, stop - start))
        return np.uint32(self._device.read_word(self._base + 4 * int(index)))

    def __setitem__(self, index: int, value: int) -> None:
        self._device.write_word(self._base + 4 * int(index), int(value))


class SimulatedDevice(Device):
    """The virtual board's programmable logic."""

    _probe_priority_ = 10

    @classmethod
    def _probe_(cls) -> list["SimulatedDevice"]:
        return [cls()]

    def __init__(self) -> None:
        super().__init__("wattbit-simulated")
        self.name = "wattbit-simulated"
        self.arch = "aarch64"
        self.capabilities = {"MEMORY_MAPPED": True, "SIMULATED": True}
        self._words: dict[int, int] = dict(ZYNQ_CLOCKS | ZYNQMP_CLOCKS)
        self._simulation: Simulation | None = None
        self._registers = range(0)
        self._running = False
        self._allocated = 0

    def get_bitfile_metadata(self, bitfile_name: str, partial: bool = False) -> Any:
        parser = RuntimeMetadataParser(Metadata(input=Path(bitfile_name).with_suffix(".hwh")))
        parser.refresh_hierarchy_dict()
        self.arch = "armv7l" if "processing_system7_0" in parser.ip_dict else "aarch64"
        return parser

    def download(self, bitstream: Any, parser: Any = None) -> None:
        """Open the simulated accelerator of the bitstream's design; WattbitError when there is none."""
        bit = Path(bitstream.bitfile_name)
        digest = read_digest(bit)
        library = bit.parent / f"accel-{digest}.so"
        if not library.is_file():
            raise WattbitError(f"{bit.name} is design {digest}, but {library.name} is not beside it; deploy again")
        if self._simulation is not None:
            self._simulation.close()
        self._simulation = Simulation(library, MEMORY_BASE, MEMORY_BYTES)
        self._running = False
        self._allocated = 0
        place = self.ip_dict[INSTANCE]
        self._registers = range(place["phys_addr"], place["phys_addr"] + place["addr_range"])
        self.post_download(bitstream, parser, self.name)

    def mmap(self, base: int, length: int) -> RegisterWindow:
        return RegisterWindow(self, base, length >> 2)

    def read_word(self, address: int) -> int:
        if self._simulation is None or address not in self._registers:
            return self._words.get(address, 0)
        offset = address - self._registers.start
        if self._running and offset == Register.CTRL:
            self._running = not self._simulation.run(POLL_CYCLES)
        return self._simulation.read(offset)

    def write_word(self, address: int, value: int) -> None:
        if self._simulation is None or address not in self._registers:
            self._words[address] = value
            return
        offset = address - self._registers.start
        self._simulation.write(offset, value)
        self._running |= offset == Register.CTRL and bool(value & START)

    def allocate(self, shape: Any, dtype: DTypeLike, **_: Any) -> PynqBuffer:
        """A buffer in simulated memory, as seen through a cache. Memory is not reused before the next download."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        start = self._allocated
        if self._simulation is None or start + size > MEMORY_BYTES:
            raise WattbitError(f"{size} bytes do not fit in the simulated memory; load the overlay first, or again")
        self._allocated = -(-(start + size) // PAGE_BYTES) * PAGE_BYTES
        return PynqBuffer(
            shape, dtype, buffer=bytearray(size), device=self, device_address=MEMORY_BASE + start, bo=start
        )

    def flush(self, start: int, offset: int, pointer: int, size: int) -> None:
        self._memory(start + offset, size)[:] = _bytes_at(pointer, size)

    def invalidate(self, start: int, offset: int, pointer: int, size: int) -> None:
        _bytes_at(pointer, size)[:] = self._memory(start + offset, size)

    def _memory(self, start: int, size: int) -> NDArray[np.uint8]:
        if self._simulation is None:
            raise WattbitError("the overlay is not loaded; a buffer outlived it")
        return self._simulation.memory[start : start + size]


def _bytes_at(pointer: int, size: int) -> NDArray[np.uint8]:
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer))
