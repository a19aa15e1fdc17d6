"""The processor cores that kernels are built for: one line each, named as the boards' target files name them."""

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.layout import Layout

Multiply = Literal["smull", "vmull", "sdot", "vpdpbusd", "pmaddwd", "maddubs"]

TRIPLES = {"aarch64": "aarch64-linux-gnu", "armv7": "arm-linux-gnueabihf", "x86_64": "x86_64-linux-gnu"}
CROSS_PACKAGES = {
    "aarch64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
    "armv7": "gcc-arm-linux-gnueabihf libc6-dev-armhf-cross",
    "x86_64": "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
}


@dataclass(frozen=True)
class Core:
    """What the kernels need to know of a core.

    cpu, features: LLVM's names. vector_bytes: width of the vectors. group_vectors: row vectors that a kernel works on
    at once, see wattbit.tvm_schedules.layout. multiply: the instruction that it multiplies with, see multiply.py.
    required: the features that a CPU must have to run its kernels, as runner/features.c asks for them.
    """

    name: str
    arch: Literal["aarch64", "armv7", "x86_64"]
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    group_vectors: int
    multiply: Multiply
    required: tuple[str, ...]

    def layout(self, weight_bits: int) -> Layout:
        signed = weight_bits == 8 and self.multiply != "vpdpbusd"
        return Layout(weight_bits, self.vector_bytes, self.group_vectors, 0 if signed else 2 ** (weight_bits - 1))

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


CORES = {
    core.name: core
    for core in (
        Core("cortex-a53", "aarch64", "cortex-a53", ("+neon",), 16, 4, "smull", ("asimd",)),
        Core("cortex-a72", "aarch64", "cortex-a72", ("+neon",), 16, 4, "smull", ("asimd",)),
        Core("cortex-a76", "aarch64", "cortex-a76", ("+neon", "+dotprod"), 16, 4, "sdot", ("asimd", "asimddp")),
        Core("cortex-a9", "armv7", "cortex-a9", ("+neon",), 16, 2, "vmull", ("neon",)),
        Core("x86-64", "x86_64", "x86-64", (), 16, 2, "pmaddwd", ()),
        Core("x86-avx2", "x86_64", "x86-64-v3", (), 32, 4, "maddubs", ("avx2", "bmi2", "fma")),
        Core(
            "x86-vnni512",
            "x86_64",
            "x86-64-v4",
            ("+avx512vnni",),
            64,
            2,
            "vpdpbusd",
            ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd", "avx512vnni"),
        ),
    )
}


def find_core(name: str) -> Core:
    if name not in CORES:
        raise WattbitError(f"core must be one of {', '.join(CORES)}, not {name!r}")
    return CORES[name]


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
