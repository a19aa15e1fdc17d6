"""The rails of a board as they are read, one JSON line a round, until the host goes away.

It runs from memory, see `wattbit.board.program`. Its input is the target's [power] table and the interval.
"""

import json
import select
import sys
from collections.abc import Iterable
from typing import Any

from wattbit.board.agent.conditions import conditions
from wattbit.board.agent.sensors import open_all
from wattbit.errors import WattbitError


def main(arguments: Iterable[str]) -> int:
    """Read every rail again and again; what cannot be read is null with its reason."""
    out = sys.stdout
    request: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    try:
        rails = open_all(request["power"])
    except WattbitError as error:
        print(json.dumps({"error": str(error)}), file=out, flush=True)
        return 0
    while True:
        powers_w: dict[str, float | None] = {}
        reasons = {}
        for name, rail in rails.items():
            try:
                powers_w[name] = rail.read()[1]
            except WattbitError as error:
                powers_w[name], reasons[name] = None, str(error)
        line = {"power_w": powers_w, "reasons": reasons}
        print(json.dumps(line | conditions()), file=out, flush=True)
        if select.select([sys.stdin], [], [], float(request["interval_s"]))[0]:
            return 0
