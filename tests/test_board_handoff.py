"""The unmodified pynq on the virtual board reads every handoff: registers, clocks, masters; old parser and new."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.board_support import cache_or_skip
from tests.vivado_support import clock_of, vivados_handoff
from wattbit.board.overlay import FREQUENCY, handoff, with_clock
from wattbit.board.ssh import Connection
from wattbit.board.virtual import VirtualBoard
from wattbit.clock import divisors
from wattbit.errors import WattbitError
from wattbit.shell import Register

MASTERS = ("m_axi_mem", *(f"m_axi_w{i}" for i in range(5)))

# RuntimeMetadataParser is what pynq 3 and later ask, the classes of hwh_parser what the images before them do.
PROGRAM = """
import json, sys
from pathlib import Path
from xml.etree import ElementTree
from pynq.pl_server import hwh_parser
from pynqmetadata.frontends import Metadata
from pynqmetadata.views.runtime import RuntimeMetadataParser
found = {}
for name in sys.argv[1:]:
    parser = RuntimeMetadataParser(Metadata(input=Path(name)))
    parser.refresh_hierarchy_dict()
    shell = parser.ip_dict["wattbit_0"]
    zynq = "processing_system7_0" in parser.ip_dict
    old = (hwh_parser._HWHZynq if zynq else hwh_parser._HWHUltrascale)(name)
    found[Path(name).stem] = {
        "base": shell["phys_addr"],
        "registers": {key: register["address_offset"] for key, register in shell["registers"].items()},
        "clock": dict(parser.clock_dict.items())[0],
        "enabled": [clock["enable"] for clock in dict(parser.clock_dict.items()).values()],
        "old_base": old.ip_dict["wattbit_0"]["phys_addr"],
        "old_clock": old.clock_dict[0],
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with VirtualBoard(cache_or_skip()) as board, board.connection() as opened:
        yield opened


@pytest.fixture(scope="module")
def found(connection: Connection, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder: Path = tmp_path_factory.mktemp("handoffs")
    (folder / "zynq.hwh").write_text(handoff("xc7z020clg400-1", 50.0, MASTERS, 4))
    (folder / "zynqmp.hwh").write_text(handoff("xck26-sfvc784-2LV-c", 150.0, MASTERS, 4))
    (folder / "vivado.hwh").write_text(vivados_handoff())
    (folder / "filled.hwh").write_text(with_clock(vivados_handoff(), 80.0))
    connection.run(["mkdir", "handoffs"])
    for path in folder.iterdir():
        connection.run(["tee", f"handoffs/{path.name}"], path.read_bytes())
    names = [f"handoffs/{path.name}" for path in sorted(folder.iterdir())]
    parsed: dict[str, Any] = json.loads(connection.run(["python3", "-c", PROGRAM, *names]))
    return parsed


@pytest.mark.parametrize(("name", "base"), [("zynq", 0x40000000), ("zynqmp", 0xA0000000), ("filled", 0x40000000)])
def test_the_registers_are_found(found: dict[str, Any], name: str, base: int) -> None:
    one = found[name]
    assert one["base"] == one["old_base"] == base
    assert one["registers"] == {register.name: register.value for register in Register}
    assert one["enabled"] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "pll_mhz", "clock_mhz"), [("zynq", 1000, 50.0), ("zynqmp", 1500, 150.0), ("filled", 1000, 1000 / 13)]
)
def test_both_parsers_set_the_same_clock(found: dict[str, Any], name: str, pll_mhz: float, clock_mhz: float) -> None:
    clock, old = found[name]["clock"], found[name]["old_clock"]
    assert clock["frequency"] == pytest.approx(clock_mhz)
    assert pll_mhz / (old["divisor0"] * old["divisor1"]) == pytest.approx(clock_mhz)


def test_vivados_own_zynq_handoff_has_no_frequency_for_pynq(found: dict[str, Any]) -> None:
    """The trap for which `with_clock` is: pynq 4.0.0 would fail on a real board with a TypeError."""
    assert found["vivado"]["clock"]["frequency"] is None


def test_vivados_handoff_gets_the_clock_that_pynq_looks_for() -> None:
    text = vivados_handoff()
    assert FREQUENCY not in text
    assert clock_of(with_clock(text, 100.0)) == 100.0
    assert clock_of(with_clock(text, 50.0)) == 50.0
    assert with_clock(with_clock(text, 50.0), 50.0) == with_clock(text, 50.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not XML"),
        ("<EDKSYSTEM/>", "has no processing system"),
        ('<A><MODULE MODTYPE="processing_system7"/></A>', "lacks PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ"),
    ],
)
def test_another_handoff_is_refused(text: str, message: str) -> None:
    with pytest.raises(WattbitError, match=message):
        with_clock(text, 50.0)


def test_dividers_make_the_highest_clock_that_is_allowed() -> None:
    for source_mhz in (1000.0, 1500.0):
        for clock_mhz in np.random.default_rng(0).uniform(1.0, 400.0, 200):
            first, second = divisors(source_mhz, float(clock_mhz))
            assert 1 <= first <= 63 and 1 <= second <= 63
            assert source_mhz / (first * second) <= clock_mhz * (1 + 1e-5)
            better = [n for n in range(1, first * second) if source_mhz / n <= clock_mhz]
            assert not any(n % d == 0 and n // d <= 63 for n in better for d in range(1, 64))
    assert divisors(1000.0, 100.0) == (10, 1)
    with pytest.raises(WattbitError, match=r"no divider makes a clock of 0\.1 MHz"):
        divisors(1000.0, 0.1)


def test_the_handoff_has_every_master_on_a_memory_port() -> None:
    masters = ("m_axi_mem", *(f"m_axi_w{i}" for i in range(5)))
    system = ElementTree.fromstring(handoff("xc7z020clg400-1", 50.0, masters, memory_ports=4))
    shell, processor = system.iter("MODULE")
    ranges = [(m.get("MASTERBUSINTERFACE"), m.get("SLAVEBUSINTERFACE")) for m in shell.iter("MEMRANGE")]
    assert ranges == [(name, f"S_AXI_HP{i % 4}") for i, name in enumerate(masters)]
    ports = {i.get("NAME") for i in processor.iter("BUSINTERFACE") if i.get("TYPE") == "SLAVE"}
    assert ports == {f"S_AXI_HP{i}" for i in range(4)}
    assert {str(i.get("NAME")) for i in shell.iter("BUSINTERFACE") if i.get("TYPE") == "MASTER"} == set(masters)
