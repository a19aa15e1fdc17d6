"""Runs built kernels through ctypes: on the board, and on the host for a host core. Standard library and NumPy only.

The board carries this file and layout.py, with wattbit's errors, files and plan.
"""

import ctypes
import mmap
import platform
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file
from wattbit.plan import ExpertId
from wattbit.tvm_schedules.layout import LAYOUT_VERSION

Int8 = NDArray[np.int8]
Address = ctypes.c_void_p


class Kernels:
    """The experts in a folder that `compile.build` wrote, with weights mapped from their files."""

    def __init__(self, folder: Path) -> None:
        record = read_json(folder / "kernels.json")
        version = record.get("layout_version")
        if version != LAYOUT_VERSION:
            raise WattbitError(f"{folder} has layout version {version}, not {LAYOUT_VERSION}; build the kernels again")
        self.d_model = int(record["shape"]["d_model"])
        self._library = open_library(folder / record["library"]["file"], record["core"])
        self._weights = {ExpertId.parse(name): _map(folder / e["file"], e) for name, e in record["experts"].items()}

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        return tuple(self._weights)

    def forward(self, expert: ExpertId, x: Int8) -> Int8:
        """Outputs [T, D] of inputs [T, D], equal to wattbit.arith.forward."""
        if expert not in self._weights:
            raise WattbitError(f"{expert} is not among the {len(self._weights)} built experts; it is of another model")
        if x.dtype != np.int8 or x.ndim != 2 or x.shape[1] != self.d_model:
            raise WattbitError(f"inputs must be int8 of shape [T, {self.d_model}], not {x.dtype} of {list(x.shape)}")
        weights = self._weights[expert]
        x = np.ascontiguousarray(x)
        y: Int8 = np.empty_like(x)
        status = self._library.wb_expert_forward(
            weights.ctypes.data, weights.nbytes, x.ctypes.data, len(x), y.ctypes.data
        )
        if status:
            reason = " ".join(self._library.wb_message(status).decode().split())  # a kernel's takes several lines
            raise WattbitError(f"{expert} did not run: {reason}; build the kernels again")
        return y


def open_library(path: Path, core: str) -> Any:
    """A library of kernels; WattbitError where this CPU cannot run it."""
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:  # of a library for another processor it says only that there is no such file
        machine = platform.machine()
        raise WattbitError(
            f"{path}, built for {core}, does not load on this {machine} ({error}); build for its core"
        ) from None
    library.wb_missing_feature.restype = library.wb_core.restype = library.wb_message.restype = ctypes.c_char_p
    missing = library.wb_missing_feature()
    if missing:
        raise WattbitError(
            f"{path}, built for {library.wb_core().decode()}, needs {missing.decode()}, which this CPU, {cpu_name()}, "
            "lacks; build for its own core"
        )
    library.wb_expert_forward.restype = ctypes.c_int32
    library.wb_expert_forward.argtypes = [Address, ctypes.c_size_t, Address, ctypes.c_int64, Address]
    library.wb_message.argtypes = [ctypes.c_int32]
    return library


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the kernel calls this machine's CPU."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.lower().startswith(("model name", "cpu part"))]
    return names[0] if names else platform.machine()


def _map(path: Path, entry: dict[str, Any]) -> NDArray[np.uint8]:
    """The bytes of a weight file, mapped read-only at the start of a page; the array keeps the mapping alive."""
    try:
        digest = sha256_file(path)
    except FileNotFoundError:
        raise WattbitError(f"{path} is absent; build the kernels again") from None
    if digest != entry["sha256"]:
        raise WattbitError(
            f"{path} has {path.stat().st_size} bytes of digest {digest[:16]}, not the {entry['bytes']} bytes of digest "
            f"{entry['sha256'][:16]} that were built; deploy it again"
        )
    with path.open("rb") as stream:
        return np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
