"""The simulated accelerator: the shell's RTL as a shared library for the host or a board, and its use from Python.

Verilator writes C++ once; each architecture compiles the same C++. The library carries the memories' contents, needs
nothing but the C library, and is deployed like a bitstream. Its C interface is described in `sim/accelerator.cpp`.
"""

import ctypes
import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import BoundedSemaphore, Lock
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from wattbit.arith import Int8
from wattbit.errors import ToolError, WattbitError
from wattbit.files import atomic, digest_json, read_json, sha256_file, write_bytes, write_json
from wattbit.hls.shell import ShellRtl
from wattbit.hls.simulate import verilator
from wattbit.processes import execute, workers
from wattbit.shell import ERRORS, IDENTITY, START, STREAM_BYTES, Register, engine_cycles, interleaved, packets

Arch = Literal["x86_64", "aarch64"]
LIBRARY = "libwattbit_accel.so"
SIM = Path(__file__).parent / "sim"
JOBS = 2
COMPILERS = BoundedSemaphore(JOBS)  # held by each running compiler, so that designs may be built side by side
RUNTIME = Lock()  # held by who compiles what designs share
RUNTIME_SOURCES = ("verilated", "verilated_threads")

GENERATE = ("--cc", "--no-timing", "--assert", "-O3", "--output-split", "60000", "-Wno-fatal", "-Wno-lint")
COMPILE = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-pthread", "-DVERILATOR=1", "-DVM_TRACE=0", "-DVM_COVERAGE=0")
LINK = ("-shared", "-pthread", "-static-libstdc++", "-static-libgcc", "-Wl,--version-script=exports.map", "-s")
ENDS = ("-DVL_USER_FINISH", "-DVL_USER_STOP", "-DVL_USER_FATAL")  # sim/accelerator.cpp defines these
SMALL_BYTES = 10_000
PAGE_BYTES = 4096
FAST, SLOW = "-O1", "-O0"  # code that runs each cycle, and code that runs once

_HANDLE, _U32, _U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64
INTERFACE: dict[str, tuple[type | None, tuple[type, ...]]] = {  # result and arguments
    "wb_open": (_HANDLE, (_U32, _U32, _U32)),
    "wb_close": (None, (_HANDLE,)),
    "wb_error": (ctypes.c_char_p, (_HANDLE,)),
    "wb_memory": (ctypes.POINTER(ctypes.c_uint8), (_HANDLE,)),
    "wb_cycles": (_U64, (_HANDLE,)),
    "wb_read": (_U32, (_HANDLE, _U32)),
    "wb_write": (None, (_HANDLE, _U32, _U32)),
    "wb_run": (ctypes.c_int, (_HANDLE, _U64)),
    "wb_set_latency": (None, (_HANDLE, _U32, _U32)),
}


def verilate(shell: ShellRtl, out: Path, arch: Arch, runtime: Path | None = None) -> Path:
    """Build `out`/ARCH/libwattbit_accel.so from a design, unless it is there from the same sources and tools.

    Both architectures may share `out`, one call after the other: the second finds the C++ of the first. runtime: folder
    for what is the same in all designs, to be shared by several; by default `out`. Raises WattbitError when a compiler
    is missing, ToolError when Verilator or the compiler fails.
    """
    compiler = f"{arch}-linux-gnu-g++"
    if shutil.which(compiler) is None:
        raise WattbitError(f"{compiler} is not installed; run `apt-get install g++-{arch.replace('_', '-')}-linux-gnu`")
    out.mkdir(parents=True, exist_ok=True)
    library = out / arch / LIBRARY
    stamp = library.with_suffix(".json")
    own = {path.name: sha256_file(path) for path in sorted(SIM.iterdir())}
    version = _run([compiler, "--version"], out).splitlines()[0]
    generated = digest_json([shell.digest, importlib.metadata.version("verilator"), GENERATE])
    key = digest_json([generated, own, version, COMPILE, LINK, ENDS, FAST, SLOW])
    if stamp.is_file() and library.is_file() and read_json(stamp) == {"key": key, "sha256": sha256_file(library)}:
        return library
    sources = _generate(shell, out / "cpp", generated)
    with tempfile.TemporaryDirectory(prefix=f".{arch}-", dir=out) as name:
        built = _compile(compiler, sources, Path(name), lambda: _runtime(compiler, version, runtime or out))
        write_bytes(library, built.read_bytes())
    write_json(stamp, {"key": key, "sha256": sha256_file(library)})
    return library


def _generate(shell: ShellRtl, out: Path, key: str) -> Path:
    """Verilator's C++ of the design and its memories' contents, in the folder `out`."""
    stamp = out / "generated.json"
    if stamp.is_file() and read_json(stamp) == key:
        return out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    command, environment = verilator()
    command += [*GENERATE, "--top-module", shell.top, "-Mdir", str(out.absolute()), *shell.sources]
    with COMPILERS:
        _run(command, shell.folder, environment)
    names = "".join(f'    {{"{name}", R"({(shell.folder / name).read_text()})"}},\n' for name in shell.memories)
    text = f'#include "memories.h"\n\nconst MemoryFile memory_files[] = {{\n{names}    {{nullptr, nullptr}},\n}};\n'
    (out / "memory_files.cpp").write_text(text)
    each = " ".join(f"DO({i})" for i in range(shell.streams))
    (out / "streams.h").write_text(f"#define STREAMS {shell.streams}\n#define FOR_STREAMS(DO) {each}\n")
    write_json(stamp, key)
    return out


def _runtime(compiler: str, version: str, folder: Path) -> list[Path]:
    """Verilator's runtime as object files, compiled in `folder` unless they are there."""
    key = digest_json([importlib.metadata.version("verilator"), version, COMPILE, ENDS, FAST])
    folder = folder / f"runtime-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    with RUNTIME:
        for source in RUNTIME_SOURCES:
            if not (folder / f"{source}.o").is_file():
                with atomic(folder / f"{source}.o") as temporary:
                    _compile_one(compiler, _include() / f"{source}.cpp", temporary, [])
    return [folder / f"{source}.o" for source in RUNTIME_SOURCES]


def _compile(compiler: str, sources: Path, work: Path, runtime: Callable[[], list[Path]]) -> Path:
    """Compile and link the generated C++, our own and the runtime, two files at a time, the longest first."""
    small = [path for path in sorted(sources.glob("V*.cpp")) if path.stat().st_size < SMALL_BYTES]
    together = work / "small.cpp"  # one file, as each would read the same long headers
    together.write_text("".join(f'#include "{path.name}"\n' for path in small))
    generated = [path for path in sources.glob("*.cpp") if path not in small]
    files = [*sorted([*generated, *SIM.glob("*.cpp")], key=lambda path: -path.stat().st_size), together]
    flags = [f"-I{sources.absolute()}", f"-I{SIM}", "-DVL_READMEM_N=wb_readmem"]  # the runtime keeps its own $readmemh

    def compile_one(source: Path) -> None:
        _compile_one(compiler, source, work / f"{source.stem}.o", flags)

    with workers(JOBS) as pool:
        shared = pool.submit(runtime)
        list(pool.map(compile_one, files))
    (work / "exports.map").write_text("{ global: wb_*; local: *; };\n")
    objects = [f"{source.stem}.o" for source in files] + [str(path.absolute()) for path in shared.result()]
    _run([compiler, *LINK, "-o", LIBRARY, *objects], work)
    return work / LIBRARY


def _include() -> Path:
    return Path(verilator()[1]["VERILATOR_ROOT"]) / "include"


def _compile_one(compiler: str, source: Path, out: Path, flags: list[str]) -> None:
    # What the runtime prints must not mix with the agent's stdout.
    own = (*ENDS, "-DVL_PRINTF(...)=std::fprintf(stderr,__VA_ARGS__)", f"-I{_include()}", f"-I{_include() / 'vltstd'}")
    optimise = SLOW if "__Slow" in source.name else FAST
    files = ["-c", str(source.absolute()), "-o", str(out.absolute())]
    with COMPILERS:
        _run([compiler, *COMPILE, optimise, *own, *flags, *files], out.parent)


def _run(command: Sequence[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = execute(command, folder, environment)
    if done.returncode:
        errors = [line for line in (done.stdout + done.stderr).splitlines() if "rror" in line]
        raise ToolError(list(command), done.returncode, "\n".join(errors[:1]) or done.stderr)
    return done.stdout


class Accelerator:
    """One simulated accelerator on this machine, memory and all.

    stall_seed: not 0 stalls all AXI channels and engine streams at random, and wakes the registers at random.
    memory_bytes: room for packets and results; the images come behind.
    images: files of the images that the design streams, one for each of its streams.
    """

    BASE = 0x1000_0000

    def __init__(
        self, library: Path, stall_seed: int = 0, memory_bytes: int = 1 << 24, images: Sequence[Path] = ()
    ) -> None:
        try:
            self._c = ctypes.CDLL(str(library.absolute()))
        except OSError as error:
            raise WattbitError(f"{library} cannot be loaded ({error}); build it for this machine") from None
        for name, (result, arguments) in INTERFACE.items():
            function = getattr(self._c, name)
            function.restype, function.argtypes = result, arguments
        contents = [np.fromfile(path, np.uint8) for path in images]
        sizes = [-(-content.size // PAGE_BYTES) * PAGE_BYTES for content in contents]
        self._handle = self._c.wb_open(self.BASE, memory_bytes + sum(sizes), stall_seed)
        try:
            self._check()
            pointer = self._c.wb_memory(self._handle)
            memory = np.ctypeslib.as_array(pointer, (memory_bytes + sum(sizes),))
            self.memory: NDArray[np.uint8] = memory[:memory_bytes]
            if self.read(Register.ID) != IDENTITY:
                raise WattbitError(
                    f"{library} is no wattbit accelerator: its ID register reads {self.read(Register.ID):#x}"
                )
            self.d_model = self.read(Register.D_MODEL)
            self.engines = self.read(Register.ENGINES)
            self._engine_cycles = engine_cycles(self.read, self.engines)
            if self.read(Register.STREAMS) != len(images):
                raise WattbitError(
                    f"the design streams the weights of {self.read(Register.STREAMS)} engines, {len(images)} files of "
                    "images were given; give one for each"
                )
            place = memory_bytes
            for stream, (content, size) in enumerate(zip(contents, sizes, strict=True)):
                memory[place : place + content.size] = content
                self.write(Register.WEIGHTS_ADDR + STREAM_BYTES * stream, self.BASE + place)
                place += size
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the simulation; `memory` must not be used any more."""
        if self._handle:
            self._c.wb_close(self._handle)
            self._handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check(self) -> None:
        message = self._c.wb_error(self._handle).decode()
        if message:
            raise WattbitError(f"the simulated accelerator failed: {message}; this is a bug in its RTL or its shell")

    def read(self, offset: int) -> int:
        value: int = self._c.wb_read(self._handle, offset)
        self._check()
        return value

    def write(self, offset: int, value: int) -> None:
        self._c.wb_write(self._handle, offset, value)
        self._check()

    @property
    def cycles(self) -> int:
        """Clock cycles since reset."""
        passed: int = self._c.wb_cycles(self._handle)
        return passed

    def wait(self, max_cycles: int) -> bool:
        """Advance until the interrupt, at most `max_cycles`; whether it came."""
        came = self._c.wb_run(self._handle, max_cycles)
        self._check()
        return bool(came == 1)

    def set_latency(self, read: int, write: int) -> None:
        """Cycles to the first beat of a read, and from the last beat of a write to its response."""
        self._c.wb_set_latency(self._handle, read, write)

    def run(
        self, engine: NDArray[np.integer], set_index: NDArray[np.integer], x: Int8, max_cycles: int = 100_000_000
    ) -> tuple[Int8, int]:
        """One launch: results [N, D] of vectors `x` [N, D], vector i on `engine`[i] and set `set_index`[i]; its cycles.

        They are sent `interleaved`. Raises WattbitError when they do not fit the design or the memory, or the launch
        reports an error.
        """
        words = packets(engine, set_index, x)
        if x.shape[1] != self.d_model:
            raise WattbitError(f"the design takes vectors of {self.d_model}, not {x.shape[1]}")
        if words.nbytes + x.nbytes > len(self.memory):
            raise WattbitError(f"{len(x)} vectors are too many for one launch; split them")
        order = interleaved(engine, set_index, self._engine_cycles)
        self.memory[: words.nbytes] = words[order].ravel()
        cycles = self.launch(self.BASE, self.BASE + words.nbytes, len(x), max_cycles)
        results = np.empty_like(x)
        results[order] = self.memory[words.nbytes : words.nbytes + x.nbytes].view(np.int8).reshape(x.shape)
        return results, cycles

    def launch(self, in_addr: int, out_addr: int, count: int, max_cycles: int = 100_000_000) -> int:
        """Run `count` packets that lie at `in_addr` of the memory, results to `out_addr`; clock cycles."""
        for offset, value in (
            (Register.IN_ADDR, in_addr),
            (Register.OUT_ADDR, out_addr),
            (Register.COUNT, count),
            (Register.CTRL, START),
        ):
            self.write(offset, value)
        if not self.wait(max_cycles):
            raise WattbitError(f"the launch of {count} packets did not end within {max_cycles} cycles")
        if code := self.read(Register.ERROR):
            raise WattbitError(f"the launch failed: {ERRORS.get(code, f'error {code}')}; check the packets' headers")
        return self.read(Register.CYCLES_HI) << 32 | self.read(Register.CYCLES_LO)
