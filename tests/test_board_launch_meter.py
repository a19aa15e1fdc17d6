"""What is launched to price and to weigh a design."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wattbit.board.agent.session import decode_array
from wattbit.board.launch_meter import LaunchMeter
from wattbit.plan import Allocation, ExpertId, Workload

D = 32
IDS = [ExpertId(0, number) for number in range(3)]
ACT_BITS = {"L0E0": 2, "L0E1": 4, "L0E2": 8}
ALLOCATION = Allocation.of(dict.fromkeys(IDS, 4))
LOAD = Workload(100, 1, tuple((expert, 1 / 3) for expert in IDS), 1)
MANIFEST: dict[str, Any] = {
    "allocation_digest": ALLOCATION.digest,
    "toolchain": "vivado",
    "model": {"d_model": D, "d_hidden": 16},
    "experts": {name: {"bits": [4, bits]} for name, bits in ACT_BITS.items()},
    "power": {"source": "hwmon"},
}


class Agent:
    """A board whose multipliers draw as much as there are bits set in what they are given."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[str], NDArray[Any]]] = []
        self._power_w = 0.0

    def request(self, cmd: str, **fields: Any) -> dict[str, Any]:
        if "x" in fields:
            x = decode_array(fields["x"])
            self.sent.append((cmd, fields["experts"], x))
            self._power_w = 2.0 + 1e-3 * float(np.unpackbits(x.view(np.uint8)).mean())
        if cmd == "power":
            return {"samples": [[k * 0.02, self._power_w + 1e-6 * (k % 3)] for k in range(160)]}
        return {"clock_mhz": 100.0, "cycles": 1000, "start_s": 0.0, "end_s": 3.0}


def test_what_is_weighed_works_as_activations_do() -> None:
    agent = Agent()
    counts = np.array([[40, 50, 60], [60, 50, 40]])
    meter = LaunchMeter(agent, MANIFEST, lambda _: SimpleNamespace(experts=tuple(IDS), counts=counts))
    cost = meter.cost(ALLOCATION, LOAD)
    assert [cmd for cmd, _, _ in agent.sent] == ["run", "active"] * 2, "priced and weighed with the same"
    for _, names, x in agent.sent:
        assert x.dtype == np.int8 and x.shape == (150, D)
        for name, bits in ACT_BITS.items():
            mine = x[[other == name for other in names]]
            half = 2 ** (bits - 1)
            assert -half <= mine.min() <= -0.9 * half and 0.9 * half - 1 <= mine.max() <= half - 1
            assert (mine & 1).mean() == pytest.approx(0.5, abs=0.05), "every bit toggles"
    assert not (agent.sent[0][2] == agent.sent[2][2]).all(), "each batch has vectors of its own"
    assert meter.cost(ALLOCATION, LOAD) == cost, "a price is repeated"
