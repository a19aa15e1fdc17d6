"""The unmodified pynq on the virtual board reads every handoff: registers, clocks, masters; old parser and new."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.board_support import cache_or_skip
from tests.vivado_support import vivados_handoff
from wattbit.board.overlay import handoff, with_clock
from wattbit.board.ssh import Connection
from wattbit.board.virtual import VirtualBoard
from wattbit.shell import Register

MASTERS = ("m_axi_mem", *(f"m_axi_w{i}" for i in range(5)))

# RuntimeMetadataParser is what pynq 3 and later ask, the classes of hwh_parser what the images before them do.
PROGRAM = """
import json, sys
from pathlib import Path
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
