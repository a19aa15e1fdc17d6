"""nextpnr and Project X-Ray from Debian's testing suites, in a folder of their own beside the system.

apt works there with its own state, so this machine's packages stay as they are; dpkg-deb unpacks, nothing is installed
and no package's script runs. The programs need a newer C library than Debian 12's: they run with the folder's own
loader.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wattbit.errors import ToolError, WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json
from wattbit.processes import alone, execute
from wattbit.progress import Progress, silent

RECIPE = 1  # to be raised when the code below makes another folder of the same packages
SUITES = ("forky", "sid")  # the first that has the packages
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PACKAGES = (
    "nextpnr-himbaechel-xilinx",  # place and route, with its chip databases
    "prjxray",  # xc7frames2bit: frames to configuration packets
    "prjxray-database",  # which bit means what
)
DEVICES = ("xc7z010", "xc7z020")
LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
CHIPS = "usr/share/nextpnr/himbaechel/xilinx"
DATABASE = "usr/share/prjxray/database"
FAMILY = "zynq7"
LIST = "packages.json"
STEPS = ("list packages", "download packages", "unpack")


@dataclass(frozen=True)
class Tools:
    """An unpacked folder of the tools. versions: of the packages in `PACKAGES`."""

    folder: Path
    versions: dict[str, str]

    @property
    def database(self) -> Path:
        """Project X-Ray's database of Zynq-7000."""
        return self.folder / DATABASE / FAMILY

    def chip(self, device: str) -> Path:
        """nextpnr's database of a device, for instance xc7z020."""
        return self.folder / CHIPS / f"chipdb-{device}.bin"

    def command(self, program: str, *arguments: str | Path) -> list[str]:
        """The command that runs a program of the folder with the folder's own loader and libraries."""
        loader = [self.folder / LOADER, "--library-path", self.folder / LIBRARIES]
        return [str(part) for part in (*loader, self.folder / "usr/bin" / program, *arguments)]

    def environment(self) -> dict[str, str]:
        """Environment of such a command: nextpnr has a Python inside, which must find its own modules."""
        return os.environ | {"PYTHONHOME": str(self.folder / "usr"), "PYTHONNOUSERSITE": "1"}


def find(cache: Path) -> Tools | None:
    """The tools below `cache`, if they are there."""
    record = path(cache) / LIST
    if not record.is_file():
        return None
    packages = {package["name"]: package["version"] for package in read_json(record)}
    return Tools(path(cache), {name: packages[name] for name in PACKAGES})


def ensure(cache: Path, progress: Progress = silent) -> Tools:
    """The tools below `cache`, downloaded (30 MB) and unpacked when they are not there (200 MB, half a minute).

    Interrupted, it goes on where it stopped; two that share a cache wait for each other. `packages.json` names every
    package with its version and SHA-256, which apt has checked against the suite's signed index. Raises WattbitError
    when this machine cannot have them, ToolError when a download fails.
    """
    found = find(cache)
    if found is None:
        reason = missing()
        if reason:
            raise WattbitError(reason)
        cache.mkdir(parents=True, exist_ok=True)
        with alone(cache / f"{path(cache).name}.lock"):
            found = find(cache) or _build(cache, progress)
    return found


def path(cache: Path) -> Path:
    """Where `ensure` puts the tools; they are complete if it exists."""
    return cache.resolve() / f"open-tools-{digest_json([RECIPE, SUITES, PACKAGES, DEVICES])}"


def missing() -> str | None:
    """Why this machine cannot fetch the tools, or None."""
    if os.uname().machine != "x86_64":
        return f"the open tools are fetched for x86_64, this machine is {os.uname().machine}; use the virtual toolchain"
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            return f"{program} is missing; the open tools are Debian packages and need its package {package}"
    if not KEYRING.is_file():
        return f"{KEYRING} is missing; run `apt-get install debian-archive-keyring`"
    return None


def unreachable(cache: Path) -> str | None:
    """Why the tools cannot be fetched now, or None; it asks the mirror for its index, which `ensure` then uses."""
    reason = missing()
    if reason is None:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            with alone(cache / f"{path(cache).name}.lock"):
                _update(_partial(cache))
        except WattbitError as error:
            return str(error)
    return reason


def _partial(cache: Path) -> Path:
    partial = path(cache).with_name(f"{path(cache).name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    return partial


def _build(cache: Path, progress: Progress) -> Tools:
    partial = _partial(cache)
    progress(f"open tools: {STEPS[0]}", 0, len(STEPS))
    suite = _update(partial)
    progress(f"open tools: {STEPS[1]} from {suite}", 1, len(STEPS))
    _apt(partial, "install", "--download-only", "--yes", "--no-install-recommends", *PACKAGES)
    progress(f"open tools: {STEPS[2]}", 2, len(STEPS))
    root = partial / "root"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    packages = [_unpack(package, root) for package in sorted((partial / "archives").glob("*.deb"))]
    _trim(root)
    write_json(root / LIST, packages)
    root.rename(path(cache))
    shutil.rmtree(partial)
    progress("open tools", len(STEPS), len(STEPS))
    found = find(cache)
    assert found is not None
    return found


def mirror() -> str:
    """The Debian mirror that this machine's apt is configured with; WattbitError if it has none."""
    columns = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)"]
    command = [*columns, "Identifier: Packages"]
    done = execute(command)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr, "repair this machine's apt configuration")
    for line in done.stdout.splitlines():
        origin, release, component, address = line.split(maxsplit=3)
        if origin == "Debian" and component == "main" and "security" not in release:
            return address
    raise WattbitError("apt has no Debian mirror to take nextpnr from; add one below /etc/apt/sources.list.d")


def _update(partial: Path) -> str:
    """Fetch the index of the first suite that has the packages; its name."""
    address = mirror()
    problems = []
    for suite in SUITES:
        (partial / "sources.list").write_text(f"deb [signed-by={KEYRING}] {address} {suite} main\n", encoding="utf-8")
        shutil.rmtree(partial / "lists", ignore_errors=True)
        try:
            _apt(partial, "update")
            _apt(partial, "install", "--simulate", "--no-install-recommends", *PACKAGES)
            return suite
        except ToolError as error:
            problems.append(f"{suite}: {error}")
    raise WattbitError(
        f"nextpnr cannot be had from {address} ({'; '.join(problems)}); check the network, or use toolchain virtual"
    )


def _apt(partial: Path, *arguments: str) -> None:
    """Run apt-get with its state in `partial`, as on a system without any package."""
    for folder in ("lists/partial", "archives/partial"):
        (partial / folder).mkdir(parents=True, exist_ok=True)
    status = partial / "status"
    status.touch()
    settings = {
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "APT::Update::Error-Mode": "any",
        "Dir::Etc::SourceList": str(partial / "sources.list"),
        "Dir::Etc::SourceParts": os.devnull,
        "Dir::State::Lists": str(partial / "lists"),
        "Dir::State::status": str(status),
        "Dir::Cache": str(partial),
        "Dir::Cache::Archives": str(partial / "archives"),
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    command = ["apt-get", "-qq", *options, *arguments]
    done = execute(command)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr)


def _unpack(package: Path, root: Path) -> dict[str, str]:
    """Unpack a .deb; its name, version and SHA-256."""
    columns = ["dpkg-deb", "--show", "--showformat", "${Package} ${Version}", str(package)]
    show = _tool(columns)
    _tool(["dpkg-deb", "--extract", str(package), str(root)])
    name, version = show.split()
    return {"name": name, "version": version, "sha256": sha256_file(package)}


def _tool(command: Sequence[str]) -> str:
    done = execute(command)
    if done.returncode:
        raise ToolError(list(command), done.returncode, done.stderr, f"delete {command[-1]} and run again")
    return done.stdout


def _trim(root: Path) -> None:
    """Take out what no build reads: 500 MB of other families, devices and documentation."""
    for folder in (root / DATABASE).iterdir():
        if folder.name != FAMILY:
            shutil.rmtree(folder)
    for file in (root / DATABASE / FAMILY).iterdir():
        if file.name.startswith(("mask_", "tile_type_", "site_type_")) or file.name.endswith(".origin_info.db"):
            file.unlink()
    for device in DEVICES:
        for unused in ("node_wires.json", "tileconn.json"):
            (root / DATABASE / FAMILY / device / unused).unlink(missing_ok=True)
    shutil.rmtree(root / DATABASE / FAMILY / "timings", ignore_errors=True)
    for file in (root / CHIPS).glob("chipdb-*.bin"):
        if file.stem.removeprefix("chipdb-") not in DEVICES:
            file.unlink()
    for name in ("doc", "man", "info", "lintian", "perl5", "zoneinfo", "gdb"):
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)
