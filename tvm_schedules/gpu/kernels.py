"""Compiles and launches the kernels here: with NVRTC for the card, or with g++ as a program that runs threads in turn.

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
HEADERS = ("experts.h", "on_card.h")

Grid = tuple[int, int, int]


class ExpertArguments(ctypes.Structure):
    """What a launch of `gemv` or `gemm` is given; see `experts.h`, whose struct has the same members."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("words", "scales", "slots", "slot_pairs", "inputs", "outputs")),
        *((name, ctypes.c_void_p) for name in ("partial", "arrived", "weight")),
        *((name, ctypes.c_int) for name in ("tokens", "rows", "depth")),
    )


class RouterArguments(ctypes.Structure):
    """What a launch of `router` is given; see `router.cu`."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("inputs", "router", "logits", "arrived", "table")),
        *((name, ctypes.c_void_p) for name in ("up_slots", "down_slots", "slot_pairs", "weight")),
        ("depth", ctypes.c_int),
    )


Launch = Callable[[ctypes.Structure, Grid], None]


def kernel(device: torch.device, name: str, constants: Mapping[str, int]) -> Launch:
    """The kernel of NAME.cu with these constants, compiled once a process.

    SHARED is the bytes of shared memory that a launch gives each block. WattbitError if a compiler or the driver
    refuses.
    """
    flags = tuple(f"-D{constant}={value}" for constant, value in sorted(constants.items()))
    if device.type == "cuda":
        threads, shared = 32 * constants["WARPS"], constants["SHARED"]
        return _on_card(name, flags, threads, shared, torch.cuda.get_device_capability(device))
    return _on_host(name, flags)


@cache
def _on_host(name: str, flags: tuple[str, ...]) -> Launch:
    compiler = shutil.which("g++")
    if compiler is None:
        raise WattbitError("there is no g++, which runs GPU kernels on the CPU; install it")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{name}.so"
        command = [compiler, "-std=c++20", "-O1", "-shared", "-fPIC", *flags]
        command += ["-x", "c++", str(FOLDER / f"{name}.cu"), "-o", str(library)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ToolError(command, done.returncode, done.stderr)
        loaded = ctypes.CDLL(str(library))

    def launch(arguments: ctypes.Structure, grid: Grid) -> None:
        loaded.launch(ctypes.byref(arguments), *grid)

    return launch


@cache
def _on_card(name: str, flags: tuple[str, ...], threads: int, shared: int, capability: tuple[int, int]) -> Launch:
    from cuda.bindings import driver

    module = _asked(driver.cuModuleLoadData(machine_code(name, flags, capability)))
    function = _asked(driver.cuModuleGetFunction(module, name.encode()))
    most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    _asked(driver.cuFuncSetAttribute(function, most, shared))
    overlap = driver.CUlaunchAttribute()
    overlap.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    overlap.value.programmaticStreamSerializationAllowed = 1

    def launch(arguments: ctypes.Structure, grid: Grid) -> None:
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = shared
        config.hStream = torch.cuda.current_stream().cuda_stream
        config.attrs, config.numAttrs = [overlap], 1
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        _asked(driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0))

    return launch


def machine_code(name: str, flags: tuple[str, ...], capability: tuple[int, int]) -> bytes:
    """NAME.cu for a card of this compute capability. ToolError with NVRTC's words if it refuses."""
    from cuda.bindings import nvrtc

    source = FOLDER / f"{name}.cu"
    headers = [(FOLDER / header).read_bytes() for header in HEADERS]
    names = [header.encode() for header in HEADERS]
    program = _asked(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), len(headers), headers, names))
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
