"""Set-up, the one place: Debian packages and the Python environment, from the pins in pyproject.toml.

`python3 wattbit/provision.py [PART...]`, standard library only, for it runs before anything is installed. What is
already as pyproject.toml says is left alone, so that a second run takes no time.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv"
STAMP = ENVIRONMENT / "wattbit-setup"
ROOM_GB = 5
"""Disk that a first set-up fills here: 3 GB of environment (with a CPU build of torch), and what pip unpacks."""
CACHE_GB = 1
"""And in the cache: the virtual board's root folder, yosys' compiled cache."""
CONSTRAINTS = ROOT / "constraints.txt"


def say(text: str) -> None:
    print(f"set-up: {text}", flush=True)


def stop(text: str) -> None:
    sys.exit(f"set-up: {text}")


def run(command: list[str]) -> None:
    """Run a command whose errors alone are worth reading."""
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if status:
        stop(f"`{' '.join(command)}` failed with exit status {status}; mend its message above and run again")


def missing_debian(packages: list[str]) -> list[str]:
    """Those packages that dpkg does not report as installed; none where there is no dpkg to ask."""
    if shutil.which("dpkg-query") is None:
        say(f"this is no Debian system; provide these yourself: {' '.join(packages)}")
        return []
    query = ["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *packages]
    listed = subprocess.run(query, check=False, capture_output=True, text=True).stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return [package for package in packages if package not in installed]


def install_debian(packages: list[str]) -> None:
    missing = missing_debian(packages)
    if not missing:
        return
    install = ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0:
        stop(f"Debian packages are missing; type `sudo apt-get update && sudo {' '.join(install)}` and run again")
    say(f"installing Debian packages, some 300 MB: {' '.join(missing)}")
    os.environ["DEBIAN_FRONTEND"] = "noninteractive"
    run(["apt-get", "-qq", "update"])
    # policy-rc.d is the Debian way to keep a package from starting its service: the virtual board has its own sshd
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        run(install)
    finally:
        if ours:
            policy.unlink()


def check_room() -> None:
    """Stop where checkout or cache, which may lie on two disks, have less room than a first set-up fills."""
    named = os.environ.get("WATTBIT_CACHE") or os.environ.get("XDG_CACHE_HOME")
    cache = Path(named).absolute() if named else Path.home() / ".cache"
    fills: dict[int, int] = {}  # GB, by disk
    for folder, more_gb in ((ROOT, ROOM_GB), (cache, CACHE_GB)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        disk = disk_of(there)
        fills[disk] = fills.get(disk, 0) + more_gb
        free_gb = shutil.disk_usage(there).free / 1e9
        if free_gb < fills[disk]:
            stop(f"{free_gb:.1f} GB are free in {there}, and set-up fills {fills[disk]}; make room and run again")


def disk_of(path: Path) -> int:
    return path.stat().st_dev


def install_python(no_deps: list[str], state: str) -> None:
    if STAMP.is_file() and STAMP.read_text() == state:
        return
    if not sys.version_info[:2] >= (3, 11):
        stop(f"Python 3.11 or newer is needed, not {sys.version.split()[0]}")
    say(f"Python environment in {ENVIRONMENT.name}/, some 3 GB; this happens once")
    if not (ENVIRONMENT / "bin" / "python").exists():
        check_room()
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
    run([*pip, "pip>=25", "setuptools>=77,<81"])
    run([*pip, "--no-build-isolation", "--constraint", str(CONSTRAINTS), "--editable", f"{ROOT}[dev,gpu]"])
    run([*pip, "--no-deps", *no_deps])
    STAMP.write_text(state)


def main(parts: list[str]) -> None:
    """Set up what every command needs, and the Debian packages of these parts."""
    pins = (ROOT / "pyproject.toml").read_bytes()
    setup = tomllib.loads(pins.decode())["tool"]["wattbit"]["setup"]
    install_debian([package for name in ("debian", *parts) for package in setup[name]])
    install_python(setup["no-deps"], f"{ROOT} {hashlib.sha256(pins + CONSTRAINTS.read_bytes()).hexdigest()}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
