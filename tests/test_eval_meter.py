"""What `wattbit eval` prices a recipe by."""

import pytest

from wattbit.board.agent.power import PowerModel
from wattbit.board.targets import load
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.hls.meter import ModelledMeter
from wattbit.metering import planned_meter, virtual_meter
from wattbit.plan import Allocation, ExpertId, ExpertShape, Workload

SHAPE = ExpertShape(32, 64)
IDS = [ExpertId(0, e) for e in range(4)]
LOAD = Workload(1000, 2, tuple((e, 0.25) for e in IDS))


def uniform(bits: int) -> Allocation:
    return Allocation.of(dict.fromkeys(IDS, bits))


def test_energy_is_that_of_the_virtual_boards_power():
    """A workload's joules by hand: static power for its time, and every product at its price."""
    power = PowerModel()
    cost = virtual_meter(SHAPE, load("virtual-z2").target).cost(uniform(4), LOAD)
    products = 1000 * 2 * SHAPE.weights
    by_hand = power.fabric_w * cost.latency_s + products * (power.mac_j + 4 * 8 * power.bit_j)
    assert cost.energy_j == pytest.approx(by_hand, rel=0.05)  # weights that stay on the chip move no bytes
    assert cost.provenance == "modelled"


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_meter_with_energy_prices_time_as_the_one_that_searches(bits: int):
    target = load("virtual-z2").target
    cost, plain = (meter(SHAPE, target).cost(uniform(bits), LOAD) for meter in (virtual_meter, ModelledMeter))
    assert (cost.latency_s, cost.memory_bytes) == (pytest.approx(plain.latency_s), plain.memory_bytes)
    assert plain.energy_j is None


def test_only_a_virtual_boards_power_is_a_model():
    for board, known in (("virtual-z2", True), ("pynq-z2", False)):
        described = load(board)
        cost = planned_meter(described, SHAPE, described.target).cost(uniform(3), LOAD)
        assert (cost.energy_j is not None) == known


def test_a_board_without_an_fpga_has_no_price():
    target = load("virtual-z2").target
    arm = type(target).from_json(target.to_json() | {"clock_mhz": None})
    with pytest.raises(WattbitError, match="virtual-z2 has no FPGA"):
        virtual_meter(SHAPE, arm)


def test_what_the_chip_cannot_hold_has_no_price():
    ids = [ExpertId(0, e) for e in range(2)]
    wide = Allocation.of({ids[0]: 2, ids[1]: 8})
    target = load("virtual-z2").target
    tiny = type(target).from_json(target.to_json() | {"lut": 500, "dsp": 1})
    with pytest.raises(InfeasibleError, match="cannot hold the allocation"):
        virtual_meter(SHAPE, tiny).cost(wide, Workload(1000, 2, tuple((e, 0.5) for e in ids)))
