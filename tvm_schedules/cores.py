"""The processor cores that kernels are built for: one line each, named as the boards' target files name them."""

import platform
import shutil
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.layout import Layout

Multiply = Literal["smull", "vmull", "sdot", "vpdpbusd", "pmaddwd", "maddubs"]

TUNED = Path(__file__).parent / "tuned"

TRIPLES = {"aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
CROSS_PACKAGES = {
    "aarch64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "armv7": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
    "x86_64": "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
}


@dataclass(frozen=True)
class Tiling:
    """How a width's kernels are tiled, see wattbit.tvm_schedules.tuning.

    group_vectors: row vectors that lie interleaved and are worked on at once. run_chunks: chunks written out in a row,
    where int16 sums do not ask for more.
    """

    group_vectors: int
    run_chunks: int

    @property
    def possible(self) -> bool:
        """Whether kernels can be built so; what runner/matrix.c keeps for the last rows holds no larger group.

        A file's numbers may be of any type: 2.0 and true are not possible either.
        """
        whole = type(self.group_vectors) is type(self.run_chunks) is int
        return whole and self.group_vectors in (1, 2, 4, 8) and self.run_chunks in range(1, 129)


@dataclass(frozen=True)
class Core:
    """What the kernels need to know of a core.

    cpu, features: LLVM's names. vector_bytes: width of the vectors. multiply: the instruction that it multiplies with,
    see wattbit.tvm_schedules.multiply. registers: its vector registers. required: the features that a CPU must have to
    run its kernels, as runner/features.c asks for them. tilings: by weight width, where others than `tuned` are wanted.
    """

    name: str
    arch: Literal["aarch64", "armv7", "x86_64"]
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    multiply: Multiply
    registers: int
    required: tuple[str, ...]
    tilings: tuple[tuple[int, Tiling], ...] = ()

    def tiling(self, weight_bits: int) -> Tiling:
        return dict(self.tilings).get(weight_bits) or tuned(self.name)[weight_bits]

    def layout(self, weight_bits: int) -> Layout:
        signed = weight_bits == 8 and self.multiply != "vpdpbusd"
        zero = 0 if signed else 2 ** (weight_bits - 1)
        return Layout(weight_bits, self.vector_bytes, self.tiling(weight_bits).group_vectors, zero)

    @property
    def layout_word(self) -> int:
        """A 32-bit digest of the layouts of all widths: what is packed for one is read by no other."""
        return crc32(repr([self.layout(bits) for bits in range(2, 9)]).encode())

    @property
    def llvm_target(self) -> dict[str, Any]:
        """The target as TVM takes it."""
        target = {"kind": "llvm", "mtriple": TRIPLES[self.arch], "mcpu": self.cpu, "mattr": list(self.features)}
        return target | ({"mfloat-abi": "hard"} if self.arch == "armv7" else {})

    @property
    def packages(self) -> str:
        """The Debian packages of the C compiler for this core: the machine's own or a cross compiler."""
        return "gcc libc6-dev" if self.arch == platform.machine() else CROSS_PACKAGES[self.arch]

    @property
    def compiler(self) -> str:
        """The name of that compiler. Raises WattbitError with the packages to install when it is absent."""
        name = "gcc" if self.arch == platform.machine() else f"{TRIPLES[self.arch]}-gcc"
        if shutil.which(name) is None:
            raise WattbitError(f"{name}, for {self.name}, is not installed; run `apt-get install {self.packages}`")
        return name

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        if self.arch == "x86_64":
            return (f"-march={self.cpu}",)
        return (f"-mcpu={self.cpu}", *(("-mfpu=neon", "-mfloat-abi=hard") if self.arch == "armv7" else ()))


AVX512_VNNI = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "avx512vnni")
CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", "aarch64", "cortex-a53", ("+neon",), 16, "smull", 32, ("asimd",)),
        Core("cortex-a72", "aarch64", "cortex-a72", ("+neon",), 16, "smull", 32, ("asimd",)),
        Core("cortex-a76", "aarch64", "cortex-a76", ("+neon", "+dotprod"), 16, "sdot", 32, ("asimd", "asimddp")),
        Core("cortex-a9", "armv7", "cortex-a9", ("+neon",), 16, "vmull", 16, ("neon",)),
        Core("x86-64", "x86_64", "x86-64", (), 16, "pmaddwd", 16, ()),
        Core("x86-avx2", "x86_64", "x86-64-v3", (), 32, "maddubs", 16, ("avx2", "bmi2", "fma")),
        Core("x86-vnni512", "x86_64", "x86-64-v4", ("+avx512vnni",), 64, "vpdpbusd", 32, AVX512_VNNI),
    )
}


@cache
def tuned(name: str) -> dict[int, Tiling]:
    """The tilings that tuning chose for a core, by weight width."""
    return _read_tilings(TUNED / f"{name}.toml", name)


def _read_tilings(path: Path, name: str) -> dict[int, Tiling]:
    try:
        record = tomllib.loads(path.read_text(encoding="utf-8"))
        core, widths = record["core"], record["widths"]
        tilings = {int(bits): Tiling(each["group_vectors"], each["run_chunks"]) for bits, each in widths.items()}
        strange = next((each for each in tilings.values() if not each.possible), None)
        if strange:
            raise ValueError(f"{strange} cannot be built")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise WattbitError(f"{path} holds no tilings ({error}); run `wattbit tune` again") from None
    if core != name:
        raise WattbitError(f"{path} has the tilings of {core}, not of {name}; run `wattbit tune` again")
    return tilings


def find_core(name: str, tilings: Path | None = None) -> Core:
    """A core of the table, with the tilings of a file that tuning wrote for a board where one is named."""
    if name not in CORES:
        raise WattbitError(f"core must be one of {', '.join(CORES)}, not {name!r}")
    core = CORES[name]
    return core if tilings is None else replace(core, tilings=tuple(_read_tilings(tilings, name).items()))


def host_core(cpuinfo: Path = Path("/proc/cpuinfo"), machine: str = platform.machine()) -> Core:
    """The best core in the table that this machine can run, by the flags in /proc/cpuinfo."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
    if machine == "aarch64":
        return CORES["cortex-a76" if "asimddp" in flags else "cortex-a53"]
    if machine == "armv7l":
        return CORES["cortex-a9"]
    if machine != "x86_64":
        raise WattbitError(f"no kernels for a {machine} host; build for one of {', '.join(CORES)} instead")
    if {"avx512_vnni", "avx512bw", "avx512vl", "avx512dq", "avx512cd"} <= flags:
        return CORES["x86-vnni512"]
    return CORES["x86-avx2" if {"avx2", "bmi2", "fma"} <= flags else "x86-64"]
