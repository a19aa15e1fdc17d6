"""benchmarks/study_rtl.py: what a study's allocations take in RTL simulation."""

from pathlib import Path

import numpy as np
import pytest
import rtl
import study_rtl
from study_jobs import BOARD, TOKENS

from wattbit.board.agent.power import PowerModel
from wattbit.board.targets import load
from wattbit.hls.launches import cycles, launches, timings
from wattbit.hls.planner import plan
from wattbit.hls.traffic import traffic
from wattbit.models.config import ModelConfig
from wattbit.plan import Allocation, Workload

MODEL = ModelConfig(vocab_size=64, d_model=64, d_hidden=128, layers=2, experts=4)
LOAD = Workload(TOKENS, 2, tuple((e, 1 / 4) for e in MODEL.expert_ids), 16)


def planned(bits: str):
    allocation = Allocation.of(dict(zip(MODEL.expert_ids, map(int, bits), strict=True)))
    return plan(allocation, MODEL.shape, load(BOARD).target, LOAD)


def test_joules_are_what_the_power_model_says_of_the_launch():
    found, power = planned("22224444"), PowerModel()
    assert not any(spec.streamed for spec in found.classes)
    widths = np.array([spec.precision.weight_bits for spec in found.classes])
    engine, index = np.array([0, 1, 1, 0, 1]), np.array([0, 1, 1, 2, 3])
    products = (MODEL.shape.weights * (power.mac_j + power.bit_j * 8 * widths[engine])).sum()
    moved = power.moved_j * 8 * len(engine) * (8 + 2 * MODEL.d_model)
    seconds = 5000 / (found.clock_mhz * 1e6)
    joules = study_rtl.joules(found, (engine, index), 5000)
    assert joules == pytest.approx(power.fabric_w * seconds + products + moved)
    assert study_rtl.joules(found, (engine, index), 6000) > joules


def test_streamed_weights_are_moved_once_an_expert():
    wide = ModelConfig(vocab_size=64, d_model=256, d_hidden=512, layers=2, experts=16)
    everyone = tuple((e, 1 / 16) for e in wide.expert_ids)
    allocation = Allocation.of(dict.fromkeys(wide.expert_ids, 8))
    found = plan(allocation, wide.shape, load(BOARD).target, Workload(TOKENS, 2, everyone, 16))
    streamed = next(i for i, spec in enumerate(found.classes) if spec.streamed)
    engine = np.full(3, streamed)
    once, twice = (study_rtl.joules(found, (engine, np.array(sets)), 5000) for sets in ([0, 0, 0], [0, 0, 1]))
    assert twice - once == pytest.approx(PowerModel().moved_j * 64 * timings(found)[streamed].load)


@pytest.mark.slow
def test_simulated_cycles_are_kept_and_near_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = study_rtl.simulate(MODEL, LOAD, tmp_path, "22224444")
    plans, sampled = planned("22224444"), traffic(LOAD)
    packets = launches(plans, sampled.experts, sampled.counts[: study_rtl.BATCHES])
    tokens = study_rtl.BATCHES * LOAD.batch
    assert found.ms == pytest.approx(cycles(plans, packets) / (plans.clock_mhz * 1e3) / tokens, rel=0.01)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]  # the design is gone
    monkeypatch.setattr(rtl, "verilate", lambda *_: pytest.fail("built again"))
    assert study_rtl.simulate(MODEL, LOAD, tmp_path, "22224444") == found
