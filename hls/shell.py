"""The AXI shell around the engines: its top module, written for the engines at hand, and all files of the design.

Registers of the AXI4-Lite slave (32 bit):

    0x00 CTRL      bit 0 start, reads 0; bit 1 done, write 1 clears, start clears; bit 2 idle
    0x04 ID        0x57423031
    0x08 DIGEST    low 32 bits of the design's digest
    0x0C COUNT     packets of a launch, 20 bits
    0x10 IN_ADDR   first packet, a multiple of 8
    0x14 OUT_ADDR  first result, a multiple of 8
    0x18 CYCLES_LO, 0x1C CYCLES_HI   clock cycles of the last launch, start to done
    0x20 D_MODEL, 0x24 ENGINES
    0x28 ERROR     the first fault of the launch: 0 none, 1 no such engine, 2 AXI error response, 3 no such set
    0x2C STREAMS   engines whose weights are streamed
    0x40 + 8 * i WEIGHTS_ADDR    images of the experts of stream i, a multiple of 8, for best speed of 128
    0x44 + 8 * i WEIGHTS_STRIDE  bytes from one image to the next, read only
    0x800 + 8 * i VECTOR_CYCLES  clock cycles of a vector on engine i, read only
    0x804 + 8 * i LOAD_CYCLES    of loading an expert, read only; 0 where weights are on the chip

Stream i is that of the i-th engine with streamed weights; it reads them over the AXI4 master `m_axi_w<i>`. Packets and
results go over `m_axi_mem`.

A packet is a 64-bit header (engine in bits 7..0, set in bits 23..8) and D int8; the result of packet i is D int8
at OUT_ADDR + i * D. A packet with a fault leaves its result as it was; the launch always ends.
"""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json, write_text
from wattbit.hls.engine import RTL, EngineRtl
from wattbit.hls.shell_top import TOP, WORD_BYTES, top_module
from wattbit.shell import digest_word

OWN_SOURCES = (
    "wattbit_fifo.sv",
    "wattbit_axil_regs.sv",
    "wattbit_reader.sv",
    "wattbit_writer.sv",
    "wattbit_dispatch.sv",
    "wattbit_unpack.sv",
    "wattbit_pack.sv",
    "wattbit_stall.sv",
    "wattbit_lane.sv",
    "wattbit_loader.sv",
    "wattbit_collect.sv",
    "wattbit_core.sv",
)
ENGINES_MAX = 128
QUEUE_VECTORS = 4
AHEAD_WORDS = 128  # that a weight port requests ahead, for memories that take up to some 100 cycles to answer
LUTRAM_WORDS = 64  # of the deepest queue in LUT RAM
BRAM_WORDS = 512  # of the shallowest in block RAM
QUEUE_WORDS_MAX = 2048
LIST = "shell.json"


@dataclass(frozen=True)
class ShellRtl:
    """A whole design in one folder: what a simulator, a synthesiser or Vivado reads, and nothing else.

    folder: holds the files and their list, `shell.json`. sources: names in compile order, the top module last.
    memories: names of $readmemh files, which the sources name without a folder.
    streams: engines whose weights are streamed.
    digest: of the contents of all files.
    """

    folder: Path
    sources: tuple[str, ...]
    memories: tuple[str, ...]
    d_model: int
    engines: tuple[str, ...]
    streams: int
    digest: str
    top: str = TOP

    @property
    def masters(self) -> tuple[str, ...]:
        """The AXI4 masters: that of packets and results, and the read-only ones of the streams."""
        return "m_axi_mem", *(f"m_axi_w{i}" for i in range(self.streams))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The design in `folder`; raises WattbitError if a file is missing or differs from the list."""
        record = read_json(folder / LIST)
        for name, sha256 in (record["sources"] | record["memories"]).items():
            path = folder / name
            if not path.is_file() or sha256_file(path) != sha256:
                raise WattbitError(f"{path} is missing or not as built; delete {folder} and run `wattbit build`")
        return cls._of(folder, record)

    @classmethod
    def _of(cls, folder: Path, record: dict[str, Any]) -> Self:
        return cls(
            folder,
            tuple(record["order"]),
            tuple(record["memories"]),
            record["d_model"],
            tuple(record["engines"]),
            record["streams"],
            digest_json(record),
        )


def build_shell(
    engines: Sequence[EngineRtl],
    d_model: int,
    digest: str,
    out: Path,
    queues: Sequence[int] | None = None,
    ahead: int = AHEAD_WORDS,
) -> ShellRtl:
    """Write the design of `engines`, engine i of the packets being engines[i], to the folder `out`.

    digest: hexadecimal, names the design; its low 32 bits are what the DIGEST register reads.
    queues: 64-bit words of vectors that may wait for each engine, powers of two of two vectors or more; `queue_words`
    by default. ahead: 64-bit words that a weight port requests ahead, a power of two.
    Raises WattbitError for a vector that is not whole 64-bit words, no or too many engines, two engines of one name,
    and two different files of one name.
    """
    if d_model % WORD_BYTES or not WORD_BYTES <= d_model <= 4088:
        raise WattbitError(f"d_model must be a multiple of {WORD_BYTES} from {WORD_BYTES} to 4088, not {d_model}")
    if not 1 <= len(engines) <= ENGINES_MAX:
        raise WattbitError(f"a shell takes 1 to {ENGINES_MAX} engines, not {len(engines)}")
    names = [engine.module for engine in engines]
    if len(set(names)) < len(names):
        raise WattbitError(f"two engines share a name in {', '.join(names)}; give each width class one engine")

    out.mkdir(parents=True, exist_ok=True)
    sources = [path for engine in engines for path in engine.sources] + [RTL / name for name in OWN_SOURCES]
    order = _gather(sources, out)
    memories = _gather([path for engine in engines for path in engine.memories], out)
    words = d_model // WORD_BYTES
    queues = queues or [queue_words(words, e.spec.cycles_per_vector(e.shape), e.beats) for e in engines]
    write_text(out / f"{TOP}.v", top_module(engines, words, queues, ahead, digest_word(digest)))
    order.append(f"{TOP}.v")
    record = {
        "top": TOP,
        "d_model": d_model,
        "engines": names,
        "streams": sum(engine.spec.streamed for engine in engines),
        "order": order,
        "sources": {name: sha256_file(out / name) for name in order},
        "memories": {name: sha256_file(out / name) for name in memories},
    }
    write_json(out / LIST, record)
    return ShellRtl._of(out, record)


def queue_words(words: int, vector_cycles: int, load_cycles: int) -> int:
    """64-bit words of vectors that may wait for an engine: of `words` each, `vector_cycles` of the engine's time.

    load_cycles: of loading an expert. On the chip it is 0, and QUEUE_VECTORS vectors wait. Streamed, as many as the
    engine computes while it loads: the header that asks for the next expert must be seen so early. What does not fit in
    LUT RAM gets whole block RAMs, two or up to QUEUE_WORDS_MAX words. The depths were found by simulation, see
    `benchmarks/fpga_fifos.py`.
    """
    vectors = max(QUEUE_VECTORS, math.ceil(load_cycles / vector_cycles) + 1)
    depth = _power_of_two(vectors * words)
    if depth <= LUTRAM_WORDS:
        return depth
    return max(BRAM_WORDS, min(depth, QUEUE_WORDS_MAX), _power_of_two(2 * words))


def _power_of_two(least: int) -> int:
    """The lowest power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()


def _gather(paths: Sequence[Path], out: Path) -> list[str]:
    """Copy files to one folder; a file that several engines share is copied once."""
    found: dict[str, str] = {}
    for path in paths:
        sha256 = sha256_file(path)
        if found.setdefault(path.name, sha256) != sha256:
            raise WattbitError(f"two different files are called {path.name}, one of them {path}; rename one")
        shutil.copyfile(path, out / path.name)
    return list(found)
