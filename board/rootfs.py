"""The virtual board's file system: Debian 12 for arm64 with Python, numpy and pynq, built once into a cache folder.

Nothing in it is executed to build it: apt downloads packages for arm64 from the sources that this machine's apt is
configured with, dpkg-deb unpacks them, pip unpacks wheels for aarch64. That needs neither root nor binfmt_misc.
"""

import os
import shutil
import sys
from pathlib import Path

from wattbit.errors import ToolError, WattbitError
from wattbit.files import digest_json, write_text
from wattbit.processes import alone, execute
from wattbit.progress import Progress, silent

RECIPE = 2  # to be raised when the code below makes another file system of the same packages
RELEASE = "bookworm"
SUITES = frozenset({RELEASE, f"{RELEASE}-updates", f"{RELEASE}-security", f"{RELEASE}/updates"})
PYTHON = (3, 11)  # Debian 12's
SITE = f"usr/local/lib/python{PYTHON[0]}.{PYTHON[1]}/dist-packages"

# Debian packages, with what they depend on. Their maintainer scripts do not run; `_settle` does what they would.
DEBIAN = (
    "base-files", "base-passwd", "libc-bin",  # /etc/profile, passwd and group masters, ldd
    "bash", "dash", "coreutils", "tar", "gzip", "sed", "grep", "findutils", "procps", "hostname",  # a shell's tools
    "python3",
    "libstdc++6",  # for a Verilated accelerator
    "libsensors-dev", "libsensors-config",  # pynq.pmbus opens libsensors.so
    "libmagic1",  # pynqutils opens it
)  # fmt: skip

# pynq 4.0.0 and all that it declares. Where a pin is not simply the version that it was tried with, it says why.
WHEELS = (
    "numpy==1.26.4",  # pynq declares numpy<2
    "pycparser==2.23",  # pynq declares <3: pynqmetadata imports plyparser
    "grpcio==1.64.0", "grpcio-tools==1.64.0", "protobuf==5.29.6",  # pynq declares exactly 1.64.0, which needs <6
    "setuptools==69.5.1",  # brings the pkg_resources and distutils that pynqutils imports, without warnings
    "cffi==2.1.1", "nest-asyncio==1.6.0",
    "pydantic==2.14.3", "pydantic-core==2.50.4", "annotated-types==0.8.0", "typing-extensions==4.16.0",
    "typing-inspection==0.4.5",
    "jsonschema==4.26.0", "jsonschema-specifications==2025.9.1", "referencing==0.37.0", "rpds-py==2026.9.1",
    "attrs==26.1.0",
    "ipython==9.18.1", "ipython-pygments-lexers==1.1.1", "matplotlib-inline==0.2.2", "traitlets==5.16.1",
    "prompt-toolkit==3.0.53", "wcwidth==0.9.4", "jedi==0.20.1", "parso==0.8.7", "pexpect==4.9.0", "ptyprocess==0.7.0",
    "stack-data==0.6.3", "executing==2.3.0", "asttokens==3.0.2", "pure-eval==0.2.4", "pygments==2.21.0",
    "psutil==7.2.2", "python-magic==0.4.27", "tqdm==4.70.1",
)  # fmt: skip
SDISTS = ("pynq==4.0.0", "pynqmetadata==0.2.0", "pynqutils==0.1.3")  # pure Python, published as source only

PROFILE = "export BOARD=virtual\n"  # as the images of real boards do in /etc/profile.d
STEPS = ("list packages", "download packages", "unpack", "python packages", "bytecode")


def ensure(cache: Path, progress: Progress = silent) -> Path:
    """The virtual board's root file system, below `cache`; built when it is not there (about a minute, 400 MB).

    Interrupted, it goes on where it stopped. Two builders of one cache wait for each other.
    Raises WattbitError when a tool or the apt configuration is missing, ToolError when a download fails.
    """
    root = path(cache)
    if root.is_dir():
        return root
    _require_tools()
    cache.mkdir(parents=True, exist_ok=True)
    with alone(cache / f"{root.name}.lock"):
        if not root.is_dir():
            _build(root, cache.resolve() / f"{root.name}.partial", progress)
    return root


def path(cache: Path) -> Path:
    """Where `ensure` puts the file system; it is complete if it exists."""
    content = [RECIPE, RELEASE, DEBIAN, WHEELS, SDISTS, PROFILE]
    return cache.resolve() / f"rootfs-arm64-{digest_json(content)}"


def _require_tools() -> None:
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            raise WattbitError(
                f"{program} is missing; the virtual board is built on Debian, from its package {package}"
            )


def _build(root: Path, partial: Path, progress: Progress) -> None:
    partial.mkdir(exist_ok=True)
    staged = partial / "root"
    shutil.rmtree(staged, ignore_errors=True)
    steps = (
        lambda: apt(partial, "update"),
        lambda: apt(partial, "install", "--download-only", "--yes", "--no-install-recommends", *DEBIAN),
        lambda: unpack(partial / "archives", staged),
        lambda: _pip(staged / SITE),
        lambda: compile_modules(staged),
    )
    for index, (name, step) in enumerate(zip(STEPS, steps, strict=True)):
        progress(f"virtual board: {name}", index, len(STEPS))
        step()
    staged.rename(root)
    shutil.rmtree(partial)
    progress("virtual board", len(STEPS), len(STEPS))


def apt(
    partial: Path,
    *arguments: str,
    program: str = "apt-get",
    folder: Path | None = None,
    architecture: str = "arm64",
) -> str:
    """What an apt program says, run for one architecture in `folder`.

    Its state is in `partial`, so that this machine's packages stay as they are.
    """
    for name in ("sources.d", "lists/partial", "archives/partial"):
        (partial / name).mkdir(parents=True, exist_ok=True)
    for source in _apt_sources():
        shutil.copy(source, partial / "sources.d")
    status = partial / "status"
    status.touch()
    settings = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Dir::Etc::SourceList": os.devnull,
        "Dir::Etc::SourceParts": str(partial / "sources.d"),
        "Dir::State::Lists": str(partial / "lists"),
        "Dir::State::status": str(status),
        "Dir::Cache": str(partial),
        "Dir::Cache::Archives": str(partial / "archives"),
    }
    options = [part for setting, value in settings.items() for part in ("-o", f"{setting}={value}")]
    quiet = ["-qq"] if program == "apt-get" else []
    remedy = "check that this machine's apt sources reach a Debian mirror"
    return _tool([program, *quiet, *options, *arguments], remedy, folder=folder)


def _apt_sources() -> set[Path]:
    """The files of this machine's apt configuration that name Debian 12."""
    columns = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(SOURCESENTRY)", "Identifier: Packages"]
    files = set()
    for line in _tool(columns, "repair this machine's apt configuration").splitlines():
        release, component, entry = line.split(maxsplit=2)
        if release in SUITES and component == "main":
            files.add(Path(entry.rpartition(":")[0]))
    if not files:
        raise WattbitError(
            f"apt has no source of Debian 12 ({RELEASE} main), which the virtual board is made of; "
            "add one below /etc/apt/sources.list.d"
        )
    return files


def unpack(archives: Path, root: Path) -> None:
    """The files of all packages in a folder, as a file system, without their maintainer scripts."""
    for package in sorted(archives.glob("*.deb")):
        _tool(["dpkg-deb", "--extract", str(package), str(root)], f"delete {package} and run again")
    for name in ("bin", "sbin", "lib"):  # Debian 12's merged /usr, which its packages do not contain
        shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
        shutil.rmtree(root / name)
        (root / name).symlink_to(f"usr/{name}")
    _settle(root)


def _settle(root: Path) -> None:
    """What the packages' maintainer scripts would have done, and what is never needed taken out."""
    masters = root / "usr/share/base-passwd"
    passwd = (masters / "passwd.master").read_text(encoding="utf-8")
    write_text(root / "etc/passwd", passwd.replace("root:*:", "root:x:"))
    shutil.copy(masters / "group.master", root / "etc/group")
    shutil.copy(root / "usr/share/base-files/profile", root / "etc/profile")
    write_text(root / "etc/hostname", "virtual\n")
    write_text(root / "etc/hosts", "127.0.0.1 localhost virtual\n")
    write_text(root / "etc/profile.d/board.sh", PROFILE)
    shell = root / "bin/sh"
    if not shell.exists():
        shell.symlink_to("dash")
    for folder in ("doc", "info", "lintian", "locale", "man"):
        shutil.rmtree(root / "usr/share" / folder, ignore_errors=True)


def _pip(site: Path) -> None:
    site.mkdir(parents=True)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--no-compile",
    ]
    version = ["--python-version", f"{PYTHON[0]}.{PYTHON[1]}", "--implementation", "cp"]
    platforms = [f"--platform=manylinux{tag}_aarch64" for tag in ("2014", "_2_17", "_2_28")]
    remedy = "check that pip reaches a package index"
    target = ["--target", str(site)]
    _tool([*pip, *target, *version, *platforms, "--only-binary=:all:", *WHEELS], remedy)
    # PYNQ_REMOTE: leave out the C drivers of video and audio cores, which would be built for this machine
    _tool([*pip, *target, "--no-build-isolation", "--use-pep517", *SDISTS], remedy, {"PYNQ_REMOTE": "1"})


def compile_modules(root: Path) -> None:
    """Bytecode for every module: it is the same on every architecture, and starting Python in emulation is slow."""
    if sys.version_info[:2] != PYTHON:
        return
    folders = [str(root / folder) for folder in ("usr/lib/python3", "usr/lib/python3.11", SITE)]
    arguments = ["-q", "-q", "-s", str(root), "-p", "/", "--invalidation-mode", "unchecked-hash", *folders]
    # exit status 1: some packages carry files of Python 2 or templates that no one imports
    execute([sys.executable, "-m", "compileall", *arguments])


def _tool(
    command: list[str], remedy: str, environment: dict[str, str] | None = None, folder: Path | None = None
) -> str:
    done = execute(command, folder, os.environ | (environment or {}))
    if done.returncode != 0:
        raise ToolError(command, done.returncode, done.stderr, remedy)
    return done.stdout
