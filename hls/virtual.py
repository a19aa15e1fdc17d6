"""Toolchain `virtual`: the Verilated design as a shared library, deployed and driven like a bitstream."""

import importlib.metadata
import shutil
from pathlib import Path

from wattbit.files import atomic
from wattbit.hls.accelerator import Arch, verilate
from wattbit.hls.shell import ShellRtl
from wattbit.hls.toolchain import Bitstream, ToolchainName
from wattbit.plan import Target
from wattbit.progress import Progress, silent

ARCHITECTURES: tuple[Arch, ...] = ("x86_64", "aarch64")  # of this machine, and of the virtual board


class VirtualToolchain:
    """Verilator and a C++ compiler for each architecture. The clock is the target's: simulation has no timing."""

    name: ToolchainName = "virtual"
    chip_share = 1.0

    def available(self, target: Target) -> str | None:
        missing = [arch for arch in ARCHITECTURES if shutil.which(f"{arch}-linux-gnu-g++") is None]
        if missing:
            packages = " ".join(f"g++-{arch.replace('_', '-')}-linux-gnu" for arch in missing)
            return f"there is no C++ compiler for {' and '.join(missing)}; run `apt-get install {packages}`"
        try:
            importlib.metadata.version("verilator")
        except importlib.metadata.PackageNotFoundError:
            return "verilator is not installed; run `make setup`"
        return None

    def build(self, shell: ShellRtl, target: Target, out: Path, progress: Progress = silent) -> Bitstream:
        """The libraries `out`/ARCH.so. What was compiled before lies in the folder `accelerator` beside the shell's."""
        libraries: dict[str, Path] = {}
        for done, arch in enumerate(ARCHITECTURES):
            progress(f"Verilator: accelerator for {arch}", done, len(ARCHITECTURES))
            built = verilate(shell, shell.folder.with_name("accelerator"), arch)
            libraries[arch] = out / f"{arch}.so"
            with atomic(libraries[arch]) as temporary:
                shutil.copyfile(built, temporary)
        progress("Verilator: accelerators", len(ARCHITECTURES), len(ARCHITECTURES))
        return Bitstream(
            toolchain="virtual",
            part=target.part or "",
            bit=None,
            hwh=None,
            libraries=libraries,
            clock_mhz=target.clock_mhz or 0.0,
            fmax_mhz=None,
            utilisation={},
            tool_versions={"verilator": importlib.metadata.version("verilator")},
            seed=None,
            checks={},
        )
