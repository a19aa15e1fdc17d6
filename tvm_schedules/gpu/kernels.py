"""Compiles and launches `experts.cu`: with NVRTC for the card, or with g++ as a program that runs its threads in turn.

The same source in both cases: `on_card.h` and `on_host.h` hold the few instructions that differ.
"""

import ctypes
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from wattbit.errors import ToolError, WattbitError

FOLDER = Path(__file__).parent
SOURCE = FOLDER / "experts.cu"
HEADER = FOLDER / "on_card.h"

Grid = tuple[int, int, int]


class Arguments(ctypes.Structure):
    """What a launch is given; see `experts.cu`, whose struct has the same members."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("words", "scales", "slots", "slot_pairs", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("partial", "arrived", "weight")),
        *((name, ctypes.c_int) for name in ("tokens", "rows", "depth")),
    )


Launch = Callable[[Arguments, Grid], None]


def kernel(device: torch.device, constants: Mapping[str, int]) -> Launch:
    """The kernel with these constants, compiled once a process. WattbitError if a compiler or the driver refuses."""
    flags = tuple(f"-D{name}={value}" for name, value in sorted(constants.items()))
    if device.type == "cuda":
        warps, shared = constants["WARPS"], constants["WARPS"] * constants["RING"]
        return _on_card(flags, 32 * warps, shared, torch.cuda.get_device_capability(device))
    return _on_host(flags)


@cache
def _on_host(flags: tuple[str, ...]) -> Launch:
    compiler = shutil.which("g++")
    if compiler is None:
        raise WattbitError("there is no g++, which runs GPU kernels on the CPU; install it")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "experts.so"
        command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", *flags, "-x", "c++", str(SOURCE)]
        command += ["-o", str(library)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ToolError(command, done.returncode, done.stderr)
        loaded = ctypes.CDLL(str(library))

    def launch(arguments: Arguments, grid: Grid) -> None:
        loaded.launch(ctypes.byref(arguments), *grid)

    return launch


@cache
def _on_card(flags: tuple[str, ...], threads: int, shared: int, capability: tuple[int, int]) -> Launch:
    from cuda.bindings import driver

    module = _asked(driver.cuModuleLoadData(_cubin(flags, capability)))
    function = _asked(driver.cuModuleGetFunction(module, b"experts"))
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _asked(driver.cuFuncSetAttribute(function, most, shared))
    overlap = driver.CUlaunchAttribute()
    overlap.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    overlap.value.programmaticStreamSerializationAllowed = 1

    def launch(arguments: Arguments, grid: Grid) -> None:
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = shared
        config.hStream = torch.cuda.current_stream().cuda_stream
        config.attrs, config.numAttrs = [overlap], 1
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _asked(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0))

    return launch


def _cubin(flags: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """Machine code for a card of this compute capability."""
    from cuda.bindings import nvrtc

    program = _asked(
        nvrtc.nvrtcCreateProgram(
            SOURCE.read_bytes(), SOURCE.name.encode(), 1, [HEADER.read_bytes()], [HEADER.name.encode()]
        )
    )
    options = [b"-std=c++17", b"-arch=sm_%d%d" % capability, *(flag.encode() for flag in flags)]
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        log = b" " * _asked(nvrtc.nvrtcGetProgramLogSize(program))
        _asked(nvrtc.nvrtcGetProgramLog(program, log))
        raise ToolError(["NVRTC"], int(status), log.decode(errors="replace").rstrip("\0"))
    code = b" " * _asked(nvrtc.nvrtcGetCUBINSize(program))
    _asked(nvrtc.nvrtcGetCUBIN(program, code))
    return code


def _asked(answer: tuple[Any, ...]) -> Any:
    """What a call of the driver or of NVRTC returned beside its status. WattbitError unless that is success."""
    status, *values = answer
    if status != 0:
        raise WattbitError(f"the CUDA driver says {status.name}")
    return values[0] if values else None
