"""A small bundle over a stub accelerator for the tests of wattbit.board, and a board that is a folder of this machine.

The stub, in C, answers like a Verilated shell: output = 3 * input + 16 * engine + set, 10 cycles a packet.
It hangs as long as the board's home folder has a file `wattbit-hang`.
Run as a program it is the agent on a bundle, with a loader that needs no pynq.
"""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wattbit.arith import ExpertInts
from wattbit.board.agent.__main__ import serve
from wattbit.board.agent.driver import Driver
from wattbit.board.agent.logic import Logic
from wattbit.board.agent.session import Session
from wattbit.board.agent.simulation import Simulation
from wattbit.board.bundle import Parts
from wattbit.errors import ToolError
from wattbit.plan import Allocation, ExpertId, Precision, Target

D, H = 16, 8
EXPERTS = 6
DIGEST = "0123456789abcdef"
CLOCK_MHZ = 100.0
CYCLES_PER_PACKET = 10
MEMORY_BASE, MEMORY_BYTES = 0x10000000, 1 << 20
TARGET = Target(
    "virtual-z2", "a virtual board", "aarch64", "cortex-a53", 2, 650.0, 1e9, part="xc7z020clg400-1", clock_mhz=CLOCK_MHZ
)

SOURCE = """
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>
enum { CTRL, ID, DIGEST, COUNT, IN_ADDR, OUT_ADDR, CYCLES_LO, CYCLES_HI, D_MODEL, ENGINES, ERROR };
struct stub { uint8_t *memory; uint32_t base, r[1024]; uint64_t cycles, left; };
void *wb_open(uint32_t base, uint32_t bytes, uint32_t seed) {
  struct stub *s = calloc(1, sizeof *s);
  (void)seed;
  s->memory = calloc(1, bytes);
  s->base = base;
  s->r[ID] = 0x57423031; s->r[DIGEST] = WORD; s->r[D_MODEL] = WIDTH; s->r[ENGINES] = 2; s->r[CTRL] = 4;
  return s;
}
void wb_close(struct stub *s) { free(s->memory); free(s); }
uint8_t *wb_memory(struct stub *s) { return s->memory; }
const char *wb_error(struct stub *s) { (void)s; return ""; }
uint64_t wb_cycles(struct stub *s) { return s->cycles; }
uint32_t wb_read(struct stub *s, uint32_t offset) { return s->r[offset >> 2]; }
void wb_write(struct stub *s, uint32_t offset, uint32_t value) {
  if (offset) { s->r[offset >> 2] = value; return; }
  if (value & 2) s->r[CTRL] &= ~2u;
  if (value & 1) { s->r[CTRL] = 0; s->r[ERROR] = 0; s->left = s->r[COUNT] * 10; }
}
int wb_run(struct stub *s, uint64_t max) {
  uint64_t step = s->left < max ? s->left : max;
  if (s->r[CTRL] & 6) return (s->r[CTRL] & 2) != 0;
  if (!access("wattbit-hang", F_OK)) return 0;
  s->left -= step;
  if (s->left) return 0;
  for (uint32_t i = 0; i < s->r[COUNT]; ++i) {
    uint8_t *p = s->memory + (s->r[IN_ADDR] - s->base) + i * (WIDTH + 8);
    uint8_t *q = s->memory + (s->r[OUT_ADDR] - s->base) + i * WIDTH;
    if (p[0] >= s->r[ENGINES]) { s->r[ERROR] = 1; continue; }
    for (int k = 0; k < WIDTH; ++k) q[k] = (uint8_t)(3 * p[8 + k] + 16 * p[0] + p[1]);
  }
  s->r[CTRL] = 6;
  s->r[CYCLES_LO] = 10 * s->r[COUNT];
  s->r[CYCLES_HI] = 0;
  return 1;
}
"""


def stub_outputs(engine: NDArray[np.int64], index: NDArray[np.int64], x: NDArray[np.int8]) -> NDArray[np.int8]:
    """What the stub makes of inputs [N, D]."""
    return (3 * x.astype(np.int64) + 16 * engine[:, None] + index[:, None]).astype(np.int8)


def build_stub(out: Path, compiler: str = "gcc", digest: str = DIGEST) -> Path:
    """The stub as a shared library; skips the test when the compiler is absent."""
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    out.parent.mkdir(parents=True, exist_ok=True)
    source = out.with_suffix(".c")
    source.write_text(SOURCE, encoding="utf-8")
    define = [f"-DWORD=0x{digest[-8:]}u", f"-DWIDTH={D}"]
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", *define, "-o", out, source], check=True)
    return out


def places() -> dict[ExpertId, tuple[int, int]]:
    """Engine and set of the stub bundle's experts: even ones at 4 bits in engine 0, odd ones at 8 bits in engine 1."""
    return {ExpertId(0, i): (i % 2, i // 2) for i in range(EXPERTS)}


def make_parts(folder: Path, compiler: str = "gcc", seed: int = 0) -> Parts:
    """Parts of a bundle whose design is the stub; export/vectors.npz holds the stub's outputs as expected ones."""
    rng = np.random.default_rng(seed)
    bits = {expert: (4, 8)[engine] for expert, (engine, _) in places().items()}
    for expert, width in bits.items():
        w1, w2 = rng.integers(-7, 8, (H, D)).astype(np.int8), rng.integers(-7, 8, (D, H)).astype(np.int8)
        m1, m2 = np.full(H, 99, np.int32), np.full(D, 99, np.int32)
        ExpertInts(expert, Precision(width), w1, w2, m1, m2, 12, 12, -4, -4, -5).save(
            folder / "export" / f"{expert}.npz"
        )
    number = rng.integers(0, EXPERTS, 60).astype(np.int32)
    x = rng.integers(-128, 128, (len(number), D)).astype(np.int8)
    engine, index = np.array(list(places().values()))[number].T
    np.savez(
        folder / "export" / "vectors.npz",
        layer=np.zeros_like(number),
        expert=number,
        x=x,
        y=stub_outputs(engine, index, x),
    )
    engines = [
        {"precision": f"w{width}a8", "experts": [str(e) for e, b in bits.items() if b == width]} for width in (4, 8)
    ]
    return Parts(
        allocation=Allocation.of(bits),
        export=folder / "export",
        design={"digest": DIGEST, "engines": engines},
        accelerator=build_stub(folder / "build" / "accel.so", compiler),
        kernels=None,
        top_k=2,
        clock_mhz=CLOCK_MHZ,
    )


class ShadowBuffer(np.ndarray[Any, Any]):
    """An array with a shadow in a simulation's memory, as pynq's buffers have one behind the cache."""

    memory: NDArray[np.uint8]
    device_address: int

    def flush(self) -> None:
        self.memory[:] = np.asarray(self).view(np.uint8).reshape(-1)

    def invalidate(self) -> None:
        np.asarray(self).view(np.uint8).reshape(-1)[:] = self.memory


class StubBoard:
    """Registers and memory of a simulated accelerator, without pynq."""

    def __init__(self, library: Path) -> None:
        self.simulation = Simulation(library, MEMORY_BASE, MEMORY_BYTES)
        self._taken = 0

    def read(self, offset: int) -> int:
        if offset == 0:
            self.simulation.run(25)
        return self.simulation.read(offset)

    def write(self, offset: int, value: int) -> None:
        self.simulation.write(offset, value)

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> ShadowBuffer:
        buffer = np.zeros(shape, dtype).view(ShadowBuffer)
        buffer.memory = self.simulation.memory[self._taken : self._taken + buffer.nbytes]
        buffer.device_address = MEMORY_BASE + self._taken
        self._taken += -(-buffer.nbytes // 64) * 64
        return buffer


def load_stub(bundle: Path, manifest: dict[str, Any]) -> Logic:
    """What wattbit.board.agent.logic.load_logic does, without pynq."""
    digest = manifest["design"]["digest"]
    board = StubBoard(bundle / f"accel-{digest}.so")
    return Logic(Driver(board, board.allocate, digest, 5.0), CLOCK_MHZ)


class FolderBoard:
    """A board whose home is a folder: programs run there. What SSH would do is done at once.

    sent: bytes that went to programs there.
    """

    host = "folder-board"

    def __init__(self, home: Path) -> None:
        self.home = home
        self.sent = 0
        home.mkdir()

    def start(self, args: list[str], stderr: IO[bytes], launch: bool = False) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, *args[1:]], cwd=self.home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        assert process.stdin is not None
        write = process.stdin.write

        def counted(data: bytes) -> int:
            self.sent += len(data)
            return self.write(write, data)

        process.stdin.write = counted  # type: ignore[assignment, method-assign]
        return process

    def write(self, write: Callable[[bytes], int], data: bytes) -> int:
        """What happens to bytes on their way; tests replace it."""
        return write(data)

    def check(self, args: list[str], status: int, stderr: str) -> None:
        if status:
            raise ToolError(args, status, stderr)

    def popen(self, args: list[str], stderr: int | IO[str] = subprocess.PIPE) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, __file__, args[-1]],
            cwd=self.home,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )


def converse(session: Session, *lines: str) -> list[str]:
    """The agent's replies to these lines."""
    replies = io.StringIO()
    serve(session, lines, replies)
    return replies.getvalue().splitlines()


if __name__ == "__main__":
    serve(Session(Path(sys.argv[1]), load_stub), sys.stdin, sys.stdout)

MINE = """
title = "mine"
arch = "aarch64"
core = "cortex-a53"
cores = 4
core_mhz = 1200.0
ddr_bytes_per_s = 1e9
"""
"""A board of one's own, without a chip."""
