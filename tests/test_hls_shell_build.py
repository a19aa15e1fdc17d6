"""Building the shell and its library: what is refused, what is kept, and that the simulation's own checks can fail."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.hls_shell_support import D, stub, stubs
from wattbit.errors import ToolError, WattbitError
from wattbit.hls import accelerator as accel
from wattbit.hls.accelerator import SIM, verilate
from wattbit.hls.shell import ShellRtl, build_shell
from wattbit.hls.simulate import verilator

DIGEST = "00112233445566aa"
needs_host = pytest.mark.skipif(shutil.which("x86_64-linux-gnu-g++") is None, reason="no x86_64-linux-gnu-g++")
needs_cross = pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="no aarch64-linux-gnu-g++")


def test_the_design_is_whole_and_found_again(tmp_path: Path) -> None:
    shell = build_shell(stubs(tmp_path / "engines"), D, DIGEST, tmp_path / "shell")
    assert ShellRtl.load(tmp_path / "shell") == shell
    assert shell.sources[-1] == "wattbit_shell.v"
    assert set(shell.sources + shell.memories) | {"shell.json"} == {p.name for p in (tmp_path / "shell").iterdir()}
    again = build_shell(stubs(tmp_path / "engines"), D, DIGEST, tmp_path / "again")
    assert again.digest == shell.digest
    assert build_shell(stubs(tmp_path / "engines"), D, "1", tmp_path / "other").digest != shell.digest
    (tmp_path / "shell" / shell.memories[0]).write_text("00\n")
    with pytest.raises(WattbitError, match=r"engine_w2a8_bias\.hex is missing or not as built"):
        ShellRtl.load(tmp_path / "shell")


def test_what_no_shell_can_hold_is_refused(tmp_path: Path) -> None:
    one = stub(tmp_path / "one", 4, 8, 8)
    twin = stub(tmp_path / "two", 4, 8, 8, wait=9)
    for engines, d_model, message in (
        ([one], 60, "d_model must be a multiple of 8 from 8 to 4088, not 60"),
        ([one], 4096, "not 4096"),
        ([], D, "a shell takes 1 to 128 engines, not 0"),
        ([one, twin], D, "two engines share a name"),
    ):
        with pytest.raises(WattbitError, match=message):
            build_shell(engines, d_model, DIGEST, tmp_path / "shell")
    (tmp_path / "two" / "engine_w8a8_bias.hex").write_text("00\n")
    other = stub(tmp_path / "three", 8, 8, 8)
    clash = stub(tmp_path / "two", 2, 8, 8)
    clash.memories[0].rename(tmp_path / "two" / other.memories[0].name)
    object.__setattr__(clash, "memories", (tmp_path / "two" / other.memories[0].name,))
    with pytest.raises(WattbitError, match=r"two different files are called engine_w8a8_bias\.hex"):
        build_shell([other, clash], D, DIGEST, tmp_path / "shell")


@pytest.mark.parametrize("engines", [1, 3])
def test_lint_finds_nothing(tmp_path: Path, engines: int) -> None:
    """Verilator's strictest lint, less: open pins by name, padded streams, a parameter that an attribute uses."""
    shell = build_shell(stubs(tmp_path / "engines")[:engines], D, DIGEST, tmp_path / "shell")
    command, environment = verilator()
    allowed = ("-Wno-PINCONNECTEMPTY", "-Wno-UNUSEDSIGNAL", "-Wno-UNUSEDPARAM")
    command += ["--lint-only", "-Wall", *allowed, "--no-timing", "--top-module", shell.top, *shell.sources]
    done = subprocess.run(command, cwd=shell.folder, env=environment, capture_output=True, text=True, check=False)
    complaints = [line for line in done.stderr.splitlines() if re.match(r"%(Warning|Error)-?\w*: wattbit", line)]
    assert complaints == []


def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = build_shell(stubs(tmp_path / "engines")[:1], D, DIGEST, tmp_path / "shell")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        WattbitError, match=r"^aarch64-linux-gnu-g\+\+ is not installed; run `apt-get install g\+\+-aarch64-linux-gnu`$"
    ):
        verilate(shell, tmp_path, "aarch64")


@needs_host
def test_broken_rtl_is_a_tool_error_and_leaves_nothing(tmp_path: Path) -> None:
    engine = stub(tmp_path / "engines", 4, 8, 8)
    engine.sources[0].write_text("module engine_w4a8 (input logic clk; endmodule\n")
    shell = build_shell([engine], D, DIGEST, tmp_path / "shell")
    with pytest.raises(ToolError, match=r"verilator.* failed .*%Error: engine_w4a8\.sv:1"):
        verilate(shell, tmp_path, "x86_64")
    assert not (tmp_path / "x86_64" / accel.LIBRARY).exists()


LOADER = """
#include <cstdint>
#include <cstdio>
extern "C" {
void *wb_open(uint32_t, uint32_t, uint32_t);
void wb_close(void *);
uint8_t *wb_memory(void *);
uint32_t wb_read(void *, uint32_t);
void wb_write(void *, uint32_t, uint32_t);
int wb_run(void *, uint64_t);
}
int main() {
    void *h = wb_open(0x40000000, 1 << 16, 3);
    uint8_t *memory = wb_memory(h);
    for (int i = 0; i < 100; i++) {
        memory[72 * i + 1] = i % 5;
        for (int j = 0; j < 64; j++) memory[72 * i + 8 + j] = i + j;
    }
    wb_write(h, 0x0C, 100);
    wb_write(h, 0x10, 0x40000000);
    wb_write(h, 0x14, 0x40008000);
    wb_write(h, 0x00, 1);
    int wrong = wb_run(h, 100000) != 1 || wb_read(h, 0x28) != 0 || wb_read(h, 0x08) != 0x445566aa;
    for (int i = 0; i < 100; i++)
        for (int j = 0; j < 64; j++) wrong += memory[0x8000 + 64 * i + j] != uint8_t(i + j + 3 * (4 + i % 5));
    std::printf("%d wrong\\n", wrong);
    wb_close(h);
}
"""


@needs_cross
def test_the_arm_library_runs_on_arm_and_is_built_once(tmp_path: Path) -> None:
    shell = build_shell([stub(tmp_path / "engines", 4, 4, 2)], D, DIGEST, tmp_path / "shell")
    library = verilate(shell, tmp_path, "aarch64")
    built = library.stat().st_ino
    assert verilate(ShellRtl.load(shell.folder), tmp_path, "aarch64").stat().st_ino == built  # kept
    with pytest.raises(WattbitError, match="cannot be loaded"):
        accel.Accelerator(library)
    headers = subprocess.run(["aarch64-linux-gnu-readelf", "-d", library], capture_output=True, text=True, check=True)
    assert set(re.findall(r"Shared library: \[(.*?)\]", headers.stdout)) <= {"libc.so.6", "libm.so.6"}
    if shutil.which("qemu-aarch64") is None:
        pytest.skip("no qemu-aarch64: the library was built, not run")
    (tmp_path / "loader.cpp").write_text(LOADER)
    loader = tmp_path / "aarch64" / "loader"
    files = [str(tmp_path / "loader.cpp"), str(library)]
    command = ["aarch64-linux-gnu-g++", *files, "-Wl,-rpath,$ORIGIN", "-o", str(loader)]
    subprocess.run(command, check=True)
    run = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(loader)]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "0 wrong\n"


CHECKS = """
#include <cstdio>
#include "axi_memory.h"
#include "memories.h"
const MemoryFile memory_files[] = {
    {"good.hex", "0a\\n1234567890abcdef0\\nFF\\n"}, {"text.hex", "zz"}, {nullptr, nullptr}};
void wb_readmem(bool, int, uint64_t, int, const std::string &, void *, uint64_t, uint64_t);
AxiMaster idle() { return AxiMaster{{}, {}, {}, true, true}; }
template <typename Change> void broken(Change change) {
    Memory memory(0, 1 << 16);
    AxiPort port(memory, 1);
    try {
        change(port);
        std::puts("no complaint");
    } catch (const std::runtime_error &error) { std::puts(error.what()); }
}
void address(AxiAddress a) { broken([=](AxiPort &m) { auto x = idle(); x.ar = a; m.clock(x); }); }
int main() {
    address({true, 4096 - 128, 15, 3, 1});
    address({true, 4096 - 128, 16, 3, 1});
    address({true, 4, 0, 3, 1});
    address({true, 0, 0, 2, 1});
    address({true, 0, 0, 3, 0});
    AxiMaster ar = idle(), aw = idle(), w = idle(), none = idle();  // offered, then taken back unseen
    ar.ar = aw.aw = {true, 0, 0, 3, 1};
    w.w = {true, 5, 255, true};
    for (auto &offer : {ar, aw, w}) broken([=](AxiPort &m) { m.clock(offer); m.clock(none); });
    broken([](AxiPort &m) {
        AxiMaster x = idle();  // a burst of two whose first beat claims to be the last
        x.aw = {true, 0, 1, 3, 1};
        x.w = {true, 5, 255, true};
        for (int i = 0; i < 20; i++) {
            const bool taken = m.outputs().awready;
            m.clock(x);
            if (taken) x.aw.valid = false;
        }
    });
    static unsigned char bytes[3][12];
    wb_readmem(true, 68, 3, 0, "/somewhere/good.hex", bytes, 0, ~0ull);
    std::printf("%02x %02x%02x %02x %02x\\n", bytes[0][0], bytes[1][0], bytes[1][7], bytes[1][8], bytes[2][0]);
    for (auto file : {"good.hex", "text.hex", "none.hex"})
        broken([=](AxiPort &) { wb_readmem(true, 8, 2, 0, file, bytes, 0, ~0ull); });
}
"""


@needs_host
def test_the_simulation_checks_what_it_claims_to_check(tmp_path: Path) -> None:
    (tmp_path / "checks.cpp").write_text(CHECKS)
    files = [str(tmp_path / "checks.cpp"), str(SIM / "readmem.cpp")]
    command = ["x86_64-linux-gnu-g++", "-std=c++20", f"-I{SIM}", "-Wall", "-Wextra", "-Werror", *files]
    subprocess.run([*command, "-o", str(tmp_path / "checks")], check=True)
    said = subprocess.run([str(tmp_path / "checks")], capture_output=True, text=True, check=True).stdout.splitlines()
    rules = [re.sub(r"AXI protocol, cycle \d+: ", "", line) for line in said]
    assert rules == [
        "no complaint",
        "AR burst crosses 4 KB",
        "AR address is not a multiple of 8",
        "AR is not an INCR burst of 8 bytes a beat",
        "AR is not an INCR burst of 8 bytes a beat",
        "AR changed before ARREADY",
        "AW changed before AWREADY",
        "W changed before WREADY",
        "WLAST is not on the last beat",
        "0a f023 01 ff",
        "the memory file of good.hex does not fit its memory",
        "the memory file of text.hex does not fit its memory",
        "the memory file none.hex is not built into this library",
    ]


@needs_host
def test_designs_share_verilators_runtime(tmp_path: Path) -> None:
    """The second design finds the object files of the first, and works with them."""
    first = build_shell([stub(tmp_path / "a", 4, 8, 8)], D, DIGEST, tmp_path / "a" / "shell")
    second = build_shell([stub(tmp_path / "b", 4, 8, 8, wait=3)], D, DIGEST, tmp_path / "b" / "shell")
    verilate(first, tmp_path / "a", "x86_64", runtime=tmp_path)
    objects = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runtime-*/*.o")}
    assert len(objects) == 2
    library = verilate(second, tmp_path / "b", "x86_64", runtime=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("runtime-*/*.o")} == objects
    with accel.Accelerator(library) as accelerator:
        assert accelerator.engines == 1
