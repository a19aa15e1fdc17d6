"""What block RAMs hold, in the netlist and in FASM: the weights must arrive in the bitstream as they are.

A RAMB36E1 is two RAMB18E1, its even bits in one and its odd bits in the other. A bit of FASM counts from 0 within its
INIT row of 256, as in the primitive's parameter.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from wattbit.hls.open.fasm import Feature

ROW_BITS = 256
ROWS = {"INIT": 64, "INITP": 8}  # of a RAMB18E1: data and parity
HALVES = {"RAMB18E1": 1, "RAMB36E1": 2}
SITE = re.compile(r"(RAMB18_Y[01])\.(INITP?)_([0-9A-F]{2})")


def of_netlist(cells: Mapping[str, Any]) -> Counter[int]:
    """Contents of 18 Kb each, data bits from 0 on and parity behind, and how often; cells: of yosys' JSON by name."""
    found: Counter[int] = Counter()
    for cell in cells.values():
        halves = HALVES.get(cell["type"], 0)
        for half in range(halves):
            bits = "".join(
                _stream(cell["parameters"], name, rows * halves)[half::halves] for name, rows in ROWS.items()
            )
            found[int(bits[::-1], 2)] += 1
    return found


def of_fasm(features: Iterable[Feature]) -> Counter[int]:
    """The same of FASM's features. Block RAMs that hold nothing but zeros have none there, and are not counted."""
    sites: dict[tuple[str, str], int] = defaultdict(int)
    for feature in features:
        match = SITE.fullmatch(feature.name)
        if match:
            site, name, row = match.groups()
            first = 0 if name == "INIT" else ROWS["INIT"] * ROW_BITS
            sites[feature.tile, site] |= 1 << first + int(row, 16) * ROW_BITS + feature.number
    return Counter(sites.values())


def _stream(parameters: Mapping[str, str], name: str, rows: int) -> str:
    """Bits of all rows, bit 0 of row 0 first."""
    texts = (parameters.get(f"{name}_{row:02X}", "0") for row in range(rows))
    return "".join(text.rjust(ROW_BITS, "0")[::-1] for text in texts)
