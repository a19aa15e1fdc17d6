"""The plan fits, is as fast as the chip allows, and says what it says of the hardware truthfully."""

import random
from dataclasses import replace
from itertools import combinations_with_replacement, product
from math import inf
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from tests.hls_engine_support import PART, Z2, engine_class, random_ints
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.hls.block_ram import Mapping, constant, writable
from wattbit.hls.datapaths import chip_of
from wattbit.hls.engine import write_engine
from wattbit.hls.engine_class import EngineClass, Home, requant_lanes
from wattbit.hls.engine_plan import EnginePlan
from wattbit.hls.meter import ModelledMeter, memory_bytes
from wattbit.hls.mixtures import Group
from wattbit.hls.planner import cycles, plan
from wattbit.hls.resources import Resources, Scales, dsp_lanes, model
from wattbit.hls.search import Search
from wattbit.hls.synthesis import count, synthesise
from wattbit.hls.traffic import traffic
from wattbit.plan import Allocation, ExpertId, ExpertShape, Placement, Precision, Target, Workload

SHAPE = ExpertShape(64, 128)
EXPERTS = [ExpertId(layer, expert) for layer in range(2) for expert in range(16)]


def workload(seed: int = 0) -> Workload:
    rng = random.Random(seed)
    weights = {expert: rng.random() ** 2 + 0.01 for expert in EXPERTS}
    total = {layer: sum(w for e, w in weights.items() if e.layer == layer) for layer in (0, 1)}
    return Workload(1000, 2, tuple((e, w / total[e.layer]) for e, w in weights.items()))


def mixed(seed: int, widths: tuple[int, ...] = (2, 3, 4, 6, 8)) -> Allocation:
    rng = random.Random(seed)
    return Allocation.of({expert: rng.choice(widths) for expert in EXPERTS})


@pytest.mark.parametrize("seed", range(10))
def test_plans_fit_and_hold_every_expert_once(seed: int) -> None:
    allocation = mixed(seed)
    planned = plan(allocation, SHAPE, Z2, workload(seed))
    assert planned.fits and not planned.total.excess(Z2)
    placed = [(spec.precision, expert) for spec in planned.classes for expert in spec.experts]
    assert sorted(placed) == sorted((p.precision, p.expert) for p in allocation.placements)
    assert len({spec.name for spec in planned.classes}) == len(planned.classes)
    assert sum(planned.vectors) == pytest.approx(2 * 1000 * 2)


def test_weights_that_do_not_fit_are_streamed_while_ports_last() -> None:
    """At 8 bits half of the experts do not fit: the hot ones stay on the chip, and widths cost time."""
    small = replace(Z2, bram18=140, memory_ports=4)
    load = replace(workload(), batch=8)
    planned = plan(Allocation.of(dict.fromkeys(EXPERTS, 8)), SHAPE, small, load)
    assert planned.fits and 1 <= sum(spec.streamed for spec in planned.classes) <= 3
    frequency = dict(load.frequency)
    hot = [frequency[e] for spec in planned.classes if not spec.streamed for e in spec.experts]
    cold = [frequency[e] for spec in planned.classes if spec.streamed for e in spec.experts]
    assert sum(hot) / len(hot) > sum(cold) / len(cold)
    four = plan(Allocation.of(dict.fromkeys(EXPERTS, 4)), SHAPE, small, load)
    assert four.cycles < planned.cycles


@pytest.mark.parametrize("bits", [2, 8])
def test_hundreds_of_experts_share_few_engines(bits: int) -> None:
    """512 of 2 bits are on the chip, of 8 bits some are streamed."""
    many = [ExpertId(layer, expert) for layer in range(2) for expert in range(256)]
    load = Workload(1000, 2, tuple((expert, 1 / 256) for expert in many))
    planned = plan(Allocation.of(dict.fromkeys(many, bits)), ExpertShape(16, 32), replace(Z2, memory_ports=4), load)
    assert planned.fits and len(planned.classes) < 8
    assert sorted(expert for spec in planned.classes for expert in spec.experts) == many
    assert len({spec.name for spec in planned.classes}) == len(planned.classes)


def test_too_many_experts_are_infeasible_not_wrong() -> None:
    many = [ExpertId(0, expert) for expert in range(2000)]
    load = Workload(1000, 2, tuple((expert, 1 / 2000) for expert in many))
    with pytest.raises(InfeasibleError, match=r"bram18: .* use fewer bits or another target"):
        ModelledMeter(ExpertShape(16, 32), Z2).cost(Allocation.of(dict.fromkeys(many, 8)), load)


def test_experts_that_no_token_wants_are_planned_too() -> None:
    """They are the first to be streamed, for that wastes nothing."""
    wanted = dict.fromkeys((e for e in EXPERTS if e.expert < 3), 1 / 3)
    load = replace(workload(), batch=8, frequency=tuple((e, wanted.get(e, 0.0)) for e in EXPERTS))
    small = replace(Z2, bram18=140, memory_ports=4)
    for bits in (dict.fromkeys(EXPERTS, 8), {e: 4 if e in wanted else 8 for e in EXPERTS}):
        planned = plan(Allocation.of(bits), SHAPE, small, load)
        streamed = {e for spec in planned.classes if spec.streamed for e in spec.experts}
        assert planned.fits and streamed and not streamed & set(wanted)
        assert sorted(e for spec in planned.classes for e in spec.experts) == EXPERTS
    idle = Allocation(tuple(Placement(e, "arm" if e in wanted else "fpga", Precision(8)) for e in EXPERTS))
    assert plan(idle, SHAPE, Z2, load).fits


def test_small_batches_pay_for_the_experts_that_they_fetch() -> None:
    small = replace(Z2, bram18=140, memory_ports=4)
    allocation = Allocation.of(dict.fromkeys(EXPERTS, 8))
    one, many = (plan(allocation, SHAPE, small, replace(workload(), batch=batch)) for batch in (1, 256))
    assert one.cycles > 2 * many.cycles  # of as many tokens


def test_more_of_anything_is_not_slower() -> None:
    load = replace(workload(), batch=64)
    for seed in range(3):
        allocation = mixed(seed)
        small = replace(Z2, bram18=120, dsp=150, memory_ports=3)
        slow = plan(allocation, SHAPE, small, load)
        assert slow.fits
        for more in ({"dsp": 220}, {"bram18": 280}):
            assert plan(allocation, SHAPE, replace(small, **more), load).cycles <= 1.1 * slow.cycles


@pytest.mark.parametrize("seed", [0, 6, 9, 11])
def test_three_widths_are_about_as_fast_where_nothing_needs_to_stream(seed: int) -> None:
    """The same LUTs with ten times the block RAM, in which weights take LUTs, too: some time may be lost."""
    rng, target = random.Random(seed), replace(Z2, lut=42560, dsp=176, memory_ports=4)
    odd = rng.sample(EXPERTS, 6)
    allocation = Allocation.of({e: 2 if e in odd[:3] else 4 if e in odd else 3 for e in EXPERTS})
    both = [cycles(allocation, ExpertShape(128, 256), replace(target, bram18=n), workload(seed)) for n in (280, 2800)]
    assert both[0] and both[1] and both[1] <= 1.15 * both[0]


def test_where_dsps_are_short_logic_multiplies() -> None:
    """Without a DSP to spare beside requantisation's, an allocation of few bits is as fast in logic."""
    few = replace(Z2, dsp=24)
    for bits in (2, 3):
        scarce, plenty = (plan(Allocation.of(dict.fromkeys(EXPERTS, bits)), SHAPE, z, workload()) for z in (few, Z2))
        assert scarce.fits and all(spec.products == "logic" for spec in scarce.classes)
        assert scarce.cycles < 1.5 * plenty.cycles
    many = replace(Z2, lut=15000)
    assert any(
        spec.products == "dsp"
        for spec in plan(Allocation.of(dict.fromkeys(EXPERTS, 8)), SHAPE, many, workload()).classes
    )


def test_levels_of_a_chain_mean_the_same_for_every_number_of_experts() -> None:
    for home in ("chip", "stream"):
        one, many = (chip_of(SHAPE, Z2).chain(Precision(3), home, sets) for sets in (1, 37))
        assert [(o.cycles, o.products) for o in one] == [(o.cycles, o.products) for o in many]


@pytest.mark.parametrize("pe", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("folds", [1, 3, 4, 8, 12, 16, 100])
def test_requantisation_has_the_fewest_lanes_that_keep_up(pe: int, folds: int) -> None:
    lanes = requant_lanes(pe, folds)
    assert pe % lanes == 0 and pe <= lanes * folds
    assert lanes == 1 or pe > lanes // 2 * folds


def test_a_uniform_allocation_uses_the_whole_chip() -> None:
    planned = plan(Allocation.of(dict.fromkeys(EXPERTS, 4)), SHAPE, Z2, workload())
    assert len(planned.classes) > 1
    assert planned.total.share(Z2) > 0.7


def fastest_of_few(allocation: Allocation, load: Workload, most: int) -> float:
    """Cycles of the fastest plan with all weights on the chip and up to `most` engines a width, of all that fit.

    Teams are priced in the order of the least that they can take, perfectly shared, until that is above what was found.
    """
    search = Search(chip_of(SHAPE, Z2), traffic(load))
    found = [
        (precision, tuple(sorted((search.traffic.index[e] for e in experts), key=search.traffic.place.__getitem__)))
        for precision, experts in allocation.classes.items()
    ]
    vectors = [search.traffic.brought(ids).mean(axis=1) for _, ids in found]  # [widths, layers]
    levels = range(8, len(search.chip.chain(Precision(8), "chip", 1)))  # all but the slowest
    teams = [team for number in range(1, most + 1) for team in combinations_with_replacement(levels, number)]
    each = {team: 1 / sum(1 / search.chip.chain(Precision(8), "chip", 1)[i].cycles for i in team) for team in teams}
    bounds = sorted(
        (sum(max(v[layer] * each[team] for v, team in zip(vectors, some, strict=True)) for layer in (0, 1)), some)
        for some in product(teams, repeat=len(found))
    )
    least = inf
    for bound, some in bounds:
        if bound >= least:
            break
        parts = [
            search.part(precision, "chip", own, level)
            for (precision, ids), team in zip(found, some, strict=True)
            for own, level in search.shares(Group(precision, "chip", ids), team)
        ]
        if search.holds(parts):
            least = min(least, search.cycles(parts))
    return least * load.tokens / load.batch


@pytest.mark.parametrize("widths", [(8,), (4,), (3,), (2,), (4, 3), (4, 2), (8, 2)])
def test_plans_are_within_3_percent_of_the_fastest_of_all_few_engines(widths: tuple[int, ...]) -> None:
    """Of up to four like or unlike engines of one width, or two of each of two; the planner may take more."""
    allocation, load = mixed(5, widths), workload()
    assert cycles(allocation, SHAPE, Z2, load) <= 1.03 * fastest_of_few(allocation, load, 4 if len(widths) == 1 else 2)


def test_engines_of_a_width_share_each_layers_vectors() -> None:
    """A launch is one layer: equal shares of all layers' vectors would not do."""
    search = Search(chip_of(SHAPE, Z2), traffic(workload()))
    ids = tuple(sorted(range(len(EXPERTS)), key=search.traffic.place.__getitem__))
    level = len(search.chip.chain(Precision(4), "chip", 1)) - 1
    shares = search.shares(Group(Precision(4), "chip", ids), (level, level))
    both = [search.traffic.brought(own).mean(axis=1) for own, _ in shares]
    assert both[0] == pytest.approx(both[1], rel=0.1)


def test_json_round_trip_and_digest() -> None:
    planned = plan(mixed(1), SHAPE, Z2, workload())
    again = EnginePlan.from_json(planned.to_json())
    assert again == planned and again.digest == planned.digest
    assert plan(mixed(2), SHAPE, Z2, workload()).digest != planned.digest


def test_what_does_not_fit_says_by_how_much() -> None:
    tiny = replace(Z2, name="tiny", bram18=20, memory_ports=1)
    allocation = Allocation.of(dict.fromkeys(EXPERTS, 8))
    planned = plan(allocation, SHAPE, tiny, workload())
    assert not planned.fits and planned.excess[0].startswith("bram18: ") and planned.excess[0].endswith(" of 20")
    with pytest.raises(InfeasibleError, match=r"tiny cannot hold the allocation \(bram18: \d+ of 20\); use fewer bits"):
        ModelledMeter(SHAPE, tiny).cost(allocation, workload())


def some_engines_fit(allocation: Allocation, shape: ExpertShape, target: Target, load: Workload) -> bool:
    """Whether any combination of one engine a width fits, each with all its experts on the chip or all streamed."""
    chip = chip_of(shape, target)
    classes = [(precision, len(experts)) for precision, experts in allocation.classes.items()]
    for homes in product(get_args(Home), repeat=len(classes)):
        sums = np.zeros((1, 4), np.int64)
        for (precision, experts), home in zip(classes, homes, strict=True):
            levels = chip.counts(precision, home, experts)
            sums = (sums[:, None] + levels).reshape(-1, 4)
        if homes.count("stream") <= chip.streams and (sums <= chip.room).all(axis=1).any():
            return True
    return False


def test_a_plan_fits_where_any_one_engine_a_width_does() -> None:
    """Chips drawn so small that some hold only the right mix of levels, and others none."""
    fit = []
    for seed in range(24):
        rng = random.Random(seed)
        shape = ExpertShape(rng.choice((32, 64, 128)), rng.choice((32, 64, 256)))
        ids = [ExpertId(layer, e) for layer in range(rng.choice((1, 2))) for e in range(rng.choice((4, 33, 40)))]
        small, sizes = rng.choice((0.2, 0.4)), [rng.uniform(0.4, 1) for _ in range(3)]
        counts = [int(small * size * most) for size, most in zip(sizes, (Z2.lut, Z2.ff, Z2.bram18), strict=True)]
        chip = dict(zip(("lut", "ff", "bram18"), counts, strict=True))
        target = replace(Z2, **chip, dsp=rng.choice((0, 11, 40)), memory_ports=rng.choice((1, 2, 4)))
        allocation = Allocation.of({e: rng.choice((2, 3, 8)) for e in ids})
        load = Workload(1000, 2, tuple((e, 0.1 + rng.random()) for e in ids), 8)
        planned = plan(allocation, shape, target, load)
        assert planned.fits >= some_engines_fit(allocation, shape, target, load), seed
        fit.append(planned.fits)
    assert 6 <= sum(fit) <= 18


@pytest.mark.parametrize("level", range(4, 18, 2))
def test_a_chip_just_large_enough_for_an_engine_gets_one_as_fast(level: int) -> None:
    """97 experts, on a chip with the block RAM of one engine that holds all of them, and much of all else."""
    ids = [ExpertId(0, expert) for expert in range(97)]
    load = Workload(1000, 2, tuple((expert, 1 / 97) for expert in ids))
    large = replace(Z2, lut=10**6, ff=10**6, dsp=10**4, bram18=10**5, memory_ports=1)
    roomy = chip_of(SHAPE, large)
    ram = roomy.chain(Precision(4), "chip", 97)[level].counts[3] + roomy.frame[3]
    search = Search(chip_of(SHAPE, replace(large, bram18=ram)), traffic(load))
    one = [search.part(Precision(4), "chip", tuple(range(97)), level)]
    assert search.holds(one)
    found = search.best({Precision(4): tuple(range(97))})
    assert search.holds(found) and search.cycles(found) <= search.cycles(one)


def test_errors_name_the_remedy() -> None:
    allocation = mixed(0)
    with pytest.raises(WattbitError, match="z2 has no FPGA; use another"):
        plan(allocation, SHAPE, replace(Z2, part=None), workload())
    on_arm = Allocation(tuple(Placement(e, "arm", Precision(4)) for e in EXPERTS))
    with pytest.raises(WattbitError, match="places no expert on the FPGA"):
        plan(on_arm, SHAPE, Z2, workload())
    with pytest.raises(WattbitError, match="has no frequency of any expert"):
        plan(allocation, SHAPE, Z2, Workload(1, 2, ()))
    with pytest.raises(WattbitError, match="has no frequency of L0E1"):
        plan(allocation, SHAPE, Z2, Workload(1, 1, ((EXPERTS[0], 1.0),)))
    with pytest.raises(WattbitError, match="a token takes 2 experts, but only 1 of layer 0 has a frequency; run"):
        plan(allocation, SHAPE, Z2, Workload(1, 2, tuple((e, float(e.expert == 3)) for e in EXPERTS)))
    with pytest.raises(WattbitError, match="pe1 8 must equal simd2 4"):
        EngineClass(Precision(4), 8, 4, 4, 4, (EXPERTS[0],))


def test_meter_prices_memory_and_slower_chips() -> None:
    meter = ModelledMeter(SHAPE, Z2)
    cost = meter.cost(Allocation.of(dict.fromkeys(EXPERTS, 4)), workload())
    assert cost.provenance == "modelled" and cost.energy_j is None
    assert cost.memory_bytes == 32 * (2 * 64 * 128 * 4 // 8 + 4 * (64 + 128))
    assert memory_bytes(Precision(3), SHAPE) == 2 * 64 * 128 * 3 // 8 + 4 * (64 + 128)
    half = ModelledMeter(SHAPE, replace(Z2, dsp=110, lut=26600)).cost(
        Allocation.of(dict.fromkeys(EXPERTS, 4)), workload()
    )
    assert half.latency_s > cost.latency_s


def test_the_meters_time_is_the_plans() -> None:
    small = replace(Z2, bram18=140, memory_ports=3)
    for seed in range(8):
        planned = plan(mixed(seed), SHAPE, small, workload(seed))
        found = cycles(mixed(seed), SHAPE, small, workload(seed))
        assert found == (planned.cycles if planned.fits else None)


def test_dsp_lanes() -> None:
    """The packing that yosys confirmed."""
    assert [dsp_lanes(w, 8, 1) for w in (2, 3, 4, 6, 8)] == [3, 3, 2, 2, 2]
    assert [dsp_lanes(w, 4, 1) for w in (2, 3, 4, 5, 6, 7, 8)] == [5, 4, 4, 3, 3, 2, 2]
    assert dsp_lanes(4, 8, 2) == 3 and dsp_lanes(2, 4, 2) == 6


def test_memories_are_mapped_as_yosys_does() -> None:
    """Points that yosys 0.70 mapped: constants, and the slots of streamed weights."""
    found = {(512, 64): 2, (128, 64): 0, (256, 36): 1, (1024, 512): 29, (768, 384): 22, (16384, 32): 29, (640, 128): 8}
    found |= {(1280, 36): 3, (2304, 24): 4, (131072, 8): 58, (196608, 16): 172}
    assert {size: constant(*size).bram18 for size in found} == found
    assert writable(256, 512, 1) == Mapping(bram18=15)
    assert writable(64, 512, 1) == Mapping(lutram=171 * 4)
    assert writable(32, 128, 1) == Mapping(lutram=22 * 4)
    assert writable(64, 512, 2) == Mapping(lutram=74 * 8)
    assert writable(512, 192, 1).bram18 == 6 and writable(128, 128, 2).bram18 == 4


def test_cells_are_counted() -> None:
    cells = {
        "LUT2": 3,
        "LUT6": 4,
        "RAM32M": 2,
        "SRL16E": 1,
        "FDRE": 7,
        "FDSE": 1,
        "DSP48E1": 5,
        "RAMB36E1": 2,
        "CARRY4": 9,
    }
    assert count(cells | {"RAMB18E1": 1}, "yosys 1") == Resources(16, 8, 5, 5, "yosys 1")


@pytest.mark.slow
def test_model_against_yosys(tmp_path: Path) -> None:
    """DSP and block RAM exact, LUT and FF off by less than 15 % of a synthesis that the fit has not seen."""
    spec = engine_class(Precision(4, 8), 5, 4, 2)
    engine = write_engine([random_ints(e, spec.precision, SHAPE) for e in spec.experts], spec, tmp_path, PART)
    found = synthesise(engine, tmp_path)
    modelled = model(spec, SHAPE, 1, Scales.of([random_ints(e, spec.precision, SHAPE) for e in spec.experts]))
    assert (found.dsp, found.bram18) == (modelled.dsp, modelled.bram18)
    assert modelled.lut == pytest.approx(found.lut, rel=0.15)
    assert modelled.ff == pytest.approx(found.ff, rel=0.15)
    assert synthesise(engine, tmp_path) == found  # from the cache
