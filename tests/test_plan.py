"""Laws of the shared types: JSON both ways, digests by content, errors that name value and remedy."""

import json
from typing import Any

import pytest

from wattbit.errors import WattbitError
from wattbit.plan import (
    Allocation,
    Cost,
    ExpertId,
    ExpertStats,
    Measurement,
    PowerSample,
    Precision,
    Target,
    Window,
)

STATS = ExpertStats(ExpertId(1, 3), 0.25, 0.3, 1.5, -0.2, 0.01, 2.0, ((2, 0.1), (8, 0.0)), 99)
MEASUREMENT = Measurement(
    "virtual-z2", "abc", "simulated", "simulated", (PowerSample(0.5, 1.25),), (Window("idle", 0.0, 1.0),), 7, None
)
TARGET = Target("z", "Z", "armv7", "cortex-a9", 2, 650.0, 1e9, part="xc7z020clg400-1", rails=("a", "b"))


def through_json(value: object) -> object:
    return json.loads(json.dumps(value, allow_nan=False))


def allocation(*bits: int) -> Allocation:
    return Allocation.of({ExpertId(0, place): width for place, width in enumerate(bits)})


@pytest.mark.parametrize("value", [STATS, MEASUREMENT, TARGET, Cost(1.0, None, 5, "modelled"), allocation(2, 4, 8)])
def test_from_json_of_to_json_is_the_value(value: ExpertStats) -> None:
    assert type(value).from_json(through_json(value.to_json())) == value  # type: ignore[arg-type]


@pytest.mark.parametrize("weight_bits", range(2, 9))
@pytest.mark.parametrize("act_bits", [4, 8])
def test_precision_prints_and_parses(weight_bits: int, act_bits: int) -> None:
    precision = Precision(weight_bits, act_bits)
    assert Precision.parse(str(precision)) == precision


@pytest.mark.parametrize("bits", [0, 1, 9, -4])
def test_unknown_width_names_value_and_choices(bits: int) -> None:
    with pytest.raises(WattbitError, match=rf"weight_bits must be one of 2, 3, 4, 5, 6, 7, 8, not {bits}"):
        Precision(bits)


def test_unknown_act_width() -> None:
    with pytest.raises(WattbitError, match="act_bits must be one of 4, 8, not 5"):
        Precision(4, 5)


@pytest.mark.parametrize("text", ["4a8", "w4", "wxa8", "w4a", ""])
def test_malformed_precision(text: str) -> None:
    with pytest.raises(WattbitError, match="written like w4a8"):
        Precision.parse(text)


def test_same_plan_same_digest_whatever_the_order() -> None:
    forward = Allocation.of({ExpertId(0, 0): 2, ExpertId(0, 1): 8})
    backward = Allocation.of({ExpertId(0, 1): 8, ExpertId(0, 0): 2})
    assert forward == backward
    assert forward.digest == backward.digest
    assert forward.digest != allocation(8, 2).digest


def test_classes_partition_the_experts() -> None:
    mixed = allocation(4, 2, 4, 8)
    assert list(mixed.classes) == [Precision(2), Precision(4), Precision(8)]
    assert sorted(e for members in mixed.classes.values() for e in members) == [p.expert for p in mixed.placements]
    assert mixed.mean_bits == 4.5


def test_an_expert_twice_is_refused() -> None:
    placement = allocation(4).placements[0]
    with pytest.raises(WattbitError, match="L0E0 is placed more than once"):
        Allocation((placement, placement))


def test_expert_of_another_model() -> None:
    with pytest.raises(WattbitError, match="L5E0 is not in the allocation"):
        allocation(4).precision(ExpertId(5, 0))


def test_damage_at_unmeasured_width() -> None:
    assert STATS.damage_at(2) == 0.1
    with pytest.raises(WattbitError, match="measured at 2, 8 bits, not 4"):
        STATS.damage_at(4)


def test_a_measurement_is_never_modelled() -> None:
    with pytest.raises(WattbitError, match="measured, simulated, not modelled"):
        Measurement("x", "y", "rail", "modelled", (), (), 0, None)


def test_target_with_a_misspelt_field() -> None:
    with pytest.raises(WattbitError, match="no field 'luts'"):
        Target.from_json(TARGET.to_json() | {"luts": 3})


@pytest.mark.parametrize("record", [[], {"L0E0": 4}, {"L0E0": {"precision": "w4a8"}}, {"L0E0": {"engine": "arm"}}])
def test_what_is_no_allocation_is_refused(record: Any) -> None:
    with pytest.raises(WattbitError, match=r"it is no allocation \(.*\); give one that wattbit wrote"):
        Allocation.from_json(record)
