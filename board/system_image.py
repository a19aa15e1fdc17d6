"""The system tier's image: Debian 12 for arm64 with its own kernel, sshd, and the kernel's real INA2xx driver.

Built once into a cache folder from Debian packages; nothing foreign is executed to build it. The sensor's drivers are
not in Debian's kernel: `i2c-stub.c` and `ina2xx.c` are taken from its linux-source and compiled against its headers.
The board is booted once and its state is saved, so that it later starts from there in seconds.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from wattbit.board import rootfs
from wattbit.board.agent.part import VARIABLE
from wattbit.board.carried import carried_files
from wattbit.board.qemu import MEMORY_MB, Machine, require_tools
from wattbit.board.virtual_server import PART
from wattbit.errors import ToolError, WattbitError
from wattbit.files import digest_json, write_text
from wattbit.processes import alone, execute, find_program
from wattbit.progress import Progress, silent

RECIPE = 3  # to be raised when the code below makes another image of the same packages
SERIES = "6.1"  # Debian 12's kernel
KERNEL = r"linux-image-([0-9.]+-[0-9]+-arm64)\b"
CROSS = "aarch64-linux-gnu-"
DRIVERS = {"i2c-stub": "drivers/i2c/i2c-stub.c", "ina2xx": "drivers/hwmon/ina2xx.c"}
EARLY = ("virtio_mmio", "virtio_blk", "crc32c_generic", "ext4")  # what the root file system needs
LATE = ("virtio_net", "virtio_rng", "i2c-dev", "regmap-i2c")
RAIL = "wattbit.board.rail"
FOLDER = Path(__file__).parent / "guest"
INIT, INITRAMFS = FOLDER / "init.sh", FOLDER / "initramfs.sh"
DEBIAN = (*rootfs.DEBIAN, "openssh-server", "busybox-static", "lm-sensors")
SPARE_MB = 256
BOOT_S = 600.0
STEPS = ("packages", "files", "drivers", "disk", "first boot")


def path(cache: Path) -> Path:
    """Where `ensure` puts the image; it is complete if it exists."""
    files = {name: file.read_text(encoding="utf-8") for name, file in carried_files([RAIL]).items()}
    scripts = [script.read_text(encoding="utf-8") for script in (INIT, INITRAMFS)]
    content = [RECIPE, rootfs.path(cache).name, DEBIAN, MEMORY_MB, files, scripts]
    return cache.resolve() / f"system-arm64-{digest_json(content)}"


def ensure(cache: Path, progress: Progress = silent) -> Path:
    """The folder of kernel, disk, keys and saved state; built when it is not there (minutes, 1 GB).

    Two builders of one cache wait for each other. Raises WattbitError when a tool is missing, ToolError when one fails.
    """
    image = path(cache)
    if image.is_dir():
        return image
    require_tools()
    light = rootfs.ensure(cache, progress)
    with alone(cache / f"{image.name}.lock"):
        if not image.is_dir():
            _build(image, light, cache.resolve() / f"{image.name}.partial", progress)
    return image


def _build(image: Path, light: Path, partial: Path, progress: Progress) -> None:
    out = partial / "image"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    tree = partial / "root"
    steps = (
        lambda: _download(partial),
        lambda: _files(partial, light, tree, out),
        lambda: _drivers(partial),
        lambda: _disk(partial, tree, out),
        lambda: _first_boot(out),
    )
    for index, (name, step) in enumerate(zip(STEPS, steps, strict=True)):
        progress(f"virtual board: {name}", index, len(STEPS))
        step()
    out.rename(image)
    shutil.rmtree(partial)
    progress("virtual board", len(STEPS), len(STEPS))


def _download(partial: Path) -> None:
    """Packages of the file system, and beside them what kernel and drivers are made of, each in a folder of its own."""
    rootfs.apt(partial, "update")
    rootfs.apt(partial, "install", "--download-only", "--yes", "--no-install-recommends", *DEBIAN)
    listed = rootfs.apt(partial, "depends", "linux-image-arm64", program="apt-cache")
    found = re.search(KERNEL, listed)
    if found is None:
        raise WattbitError("apt knows no Debian 12 kernel for arm64; check its sources")
    common = found[1].replace("-arm64", "-common")
    kernel = partial / "kernel"
    kernel.mkdir(exist_ok=True)
    names = [
        f"linux-image-{found[1]}",
        f"linux-headers-{found[1]}",
        f"linux-headers-{common}",
        f"linux-source-{SERIES}",
    ]
    rootfs.apt(partial, "download", *names, folder=kernel)
    host = partial / "host"  # modpost and its like run on this machine
    rootfs.apt(host, "update", architecture="amd64")
    rootfs.apt(host, "download", f"linux-kbuild-{SERIES}", folder=kernel, architecture="amd64")


def _files(partial: Path, light: Path, tree: Path, out: Path) -> None:
    """The guest's files: Debian's packages, the light tier's Python packages, keys, init and the rail's model."""
    shutil.rmtree(tree, ignore_errors=True)
    rootfs.unpack(partial / "archives", tree)
    shutil.copytree(light / rootfs.SITE, tree / rootfs.SITE, symlinks=True, dirs_exist_ok=True)
    rootfs.compile_modules(tree)
    for name, file in carried_files([RAIL]).items():
        target = tree / "usr/local/lib/wattbit" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    _keys(tree, out)
    with (tree / "etc/passwd").open("a") as passwd:
        passwd.write("sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n")
    users = [line.split(":")[0] for line in (tree / "etc/passwd").read_text().splitlines()]
    write_text(tree / "etc/shadow", "".join(f"{user}:*:19000:0:99999:7:::\n" for user in users))
    (tree / "usr/sbin/wattbit-init").write_bytes(INIT.read_bytes())
    (tree / "usr/sbin/wattbit-init").chmod(0o755)
    for name in ("proc", "sys", "dev", "run", "tmp", "root", "var/log"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "tmp").chmod(0o1777)


def _keys(tree: Path, out: Path) -> None:
    """A key of the host and one of its user, made for this cache alone."""
    for name in ("hostkey", "identity"):
        _tool(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "wattbit", "-f", str(out / name)])
    ssh = tree / "etc/ssh"
    shutil.copy(out / "hostkey", ssh / "ssh_host_ed25519_key")
    (ssh / "ssh_host_ed25519_key").chmod(0o600)
    write_text(
        ssh / "sshd_config",
        "HostKey /etc/ssh/ssh_host_ed25519_key\nUseDNS no\nUsePAM no\nPermitRootLogin prohibit-password\n"
        f"PasswordAuthentication no\nStrictModes no\nSetEnv {VARIABLE}={PART}\n"
        "Subsystem sftp /usr/lib/openssh/sftp-server\n",
    )
    home = tree / "root/.ssh"
    home.mkdir(parents=True, mode=0o700)
    shutil.copy(out / "identity.pub", home / "authorized_keys")


def _drivers(partial: Path) -> None:
    """Compile the sensor's drivers into partial/drivers; nothing when an earlier build got that far."""
    out = partial / "drivers"
    if all((out / f"{name}.ko").exists() for name in DRIVERS):
        return
    kernel = partial / "kernel"
    files = partial / "kernel-files"
    for package in sorted(kernel.glob("*.deb")):
        _tool(["dpkg-deb", "--extract", str(package), str(files)])
    out.mkdir(exist_ok=True)
    archive = files / f"usr/src/linux-source-{SERIES}.tar.xz"
    members = [f"linux-source-{SERIES}/{source}" for source in DRIVERS.values()]
    _tool(["tar", "--extract", "--file", str(archive), "--directory", str(out), "--transform", "s,.*/,,", *members])
    write_text(out / "Makefile", "obj-m := " + " ".join(f"{name}.o" for name in DRIVERS) + "\n")
    headers = next(path for path in (files / "usr/src").glob("linux-headers-*-arm64"))
    makefile = headers / "Makefile"
    text = makefile.read_text(encoding="utf-8")
    if str(files) not in text:  # Debian's headers are included from where they are installed
        write_text(makefile, text.replace("/usr/src/", f"{files}/usr/src/"))
    settings = ["ARCH=arm64", f"CROSS_COMPILE={CROSS}", f"CC={CROSS}gcc", f"M={out}", "CONFIG_DEBUG_INFO_BTF_MODULES="]
    _tool(["make", "-C", str(headers), *settings, "modules"])


def _disk(partial: Path, tree: Path, out: Path) -> None:
    """Kernel, initial RAM disk and disk image."""
    files = partial / "kernel-files"
    shutil.copyfile(next((files / "boot").glob("vmlinuz-*")), out / "kernel")
    modules = {_module(path): path for path in (files / "lib/modules").rglob("*.ko")}
    modules |= {_module(path): path for path in (partial / "drivers").glob("*.ko")}
    ram = partial / "ram"
    shutil.rmtree(ram, ignore_errors=True)
    for name in ("bin", "proc", "sys", "dev", "root"):
        (ram / name).mkdir(parents=True)
    busybox = next(path for path in (tree / "usr/bin/busybox", tree / "bin/busybox") if path.exists())
    shutil.copy(busybox, ram / "bin/busybox")
    shutil.copy(INITRAMFS, ram / "init")
    (ram / "init").chmod(0o755)
    _install(ram / "modules", modules, EARLY)
    _install(tree / "usr/lib/wattbit-modules", modules, (*LATE, *DRIVERS))
    names = "\n".join(sorted(str(path.relative_to(ram)) for path in ram.rglob("*"))) + "\n"
    archive = execute(["cpio", "--quiet", "-o", "-H", "newc", "-R", "0:0", "-F", str(out / "initrd")], ram, text=names)
    if archive.returncode:
        raise ToolError(["cpio"], archive.returncode, archive.stderr, "install the Debian package cpio")
    size_mb = sum(path.lstat().st_size for path in tree.rglob("*")) // 10**6
    raw = partial / "disk.raw"
    raw.unlink(missing_ok=True)
    make = [
        find_program("mke2fs") or "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-d",
        str(tree),
        str(raw),
        f"{size_mb * 5 // 4 + SPARE_MB}M",
    ]
    _tool([*([] if os.geteuid() == 0 else ["unshare", "--map-root-user"]), *make])  # the guest's files are root's
    _tool(["qemu-img", "convert", "-c", "-O", "qcow2", str(raw), str(out / "base.qcow2")])


def _install(folder: Path, modules: dict[str, Path], wanted: tuple[str, ...]) -> None:
    """Copy modules with what they depend on; `order` says how to load them."""
    folder.mkdir(parents=True)
    order: list[str] = []

    def add(name: str) -> None:
        name = name.replace("-", "_")
        if name in modules and name not in order:  # what is not there is built into the kernel
            for other in _depends(modules[name]):
                add(other)
            shutil.copy(modules[name], folder / f"{name}.ko")
            order.append(name)

    for name in wanted:
        add(name)
    write_text(folder / "order", "".join(f"{name}.ko\n" for name in order))


def _module(path: Path) -> str:
    return path.stem.replace("-", "_")


def _depends(module: Path) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module.read_bytes())
    return [name for name in found[1].decode().split(",") if name] if found else []


def _first_boot(out: Path) -> None:
    """Boot from nothing, wait until sshd and the sensor are there, and save the machine's state."""
    _tool(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", str(out / "disk.qcow2")])
    with Machine(out, out / "disk.qcow2", resume=False) as machine:
        machine.wait_for_console("wattbit: ready", BOOT_S)
        machine.save(out / "state")


def _tool(command: list[str]) -> None:
    done = execute(command)
    if done.returncode:
        raise ToolError(command, done.returncode, done.stderr)


def main() -> None:
    """`python -m wattbit.board.system_image CACHE`, for provisioning."""
    print(ensure(Path(sys.argv[1]), lambda what, done, total: print(f"{done}/{total} {what}", flush=True)))


if __name__ == "__main__":
    main()
