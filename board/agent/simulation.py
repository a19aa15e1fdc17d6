"""The Verilated accelerator through its C ABI: registers, memory and time."""

import ctypes
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError

_SIGNATURES = {
    "wb_open": (ctypes.c_void_p, [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32]),
    "wb_close": (None, [ctypes.c_void_p]),
    "wb_error": (ctypes.c_char_p, [ctypes.c_void_p]),
    "wb_memory": (ctypes.c_void_p, [ctypes.c_void_p]),
    "wb_read": (ctypes.c_uint32, [ctypes.c_void_p, ctypes.c_uint32]),
    "wb_write": (None, [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]),
    "wb_run": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_uint64]),
}


class Simulation:
    """One simulated accelerator with its own memory of `memory_bytes` from `memory_base` on."""

    def __init__(self, library: Path, memory_base: int, memory_bytes: int, stall_seed: int = 0) -> None:
        try:
            self._library = ctypes.CDLL(str(library))
            for name, (result, arguments) in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = result, arguments
        except (OSError, AttributeError) as error:
            raise WattbitError(f"{library.name} is no simulated accelerator for this machine: {error}") from None
        self._handle = self._library.wb_open(memory_base, memory_bytes, stall_seed)
        if not self._handle:
            raise WattbitError(f"{library.name} could not open with {memory_bytes} bytes of memory")
        self._check()
        window = (ctypes.c_uint8 * memory_bytes).from_address(self._library.wb_memory(self._handle))
        self.memory: NDArray[np.uint8] = np.ctypeslib.as_array(window)

    def read(self, offset: int) -> int:
        value = int(self._library.wb_read(self._handle, offset))
        self._check()
        return value

    def write(self, offset: int, value: int) -> None:
        self._library.wb_write(self._handle, offset, value)
        self._check()

    def run(self, max_cycles: int) -> bool:
        """Advance until the interrupt (True) or by `max_cycles` (False)."""
        came = bool(self._library.wb_run(self._handle, max_cycles) == 1)
        self._check()
        return came

    def _check(self) -> None:
        message = self._library.wb_error(self._handle).decode()
        if message:
            raise WattbitError(f"the simulated accelerator failed: {message}; its RTL or its shell has a bug")

    def close(self) -> None:
        """Free the simulation; `memory` must not be used after it."""
        self._library.wb_close(self._handle)
        self._handle = None
