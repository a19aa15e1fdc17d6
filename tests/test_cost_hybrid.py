"""What measured prices teach a cost model: its residual, and the meter that measures every mth price of a search."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.policy_fakes import WIDTHS, AdditiveMeter, SharedChipMeter, make_stats, make_workload
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.plan import Allocation, Cost, Workload
from wattbit.policy.cost.calibration import mixed
from wattbit.policy.cost.hybrid import HybridMeter
from wattbit.policy.cost.model import Prediction
from wattbit.policy.cost.residual import Residual

STATS = make_stats(8)
IDS = [s.expert for s in STATS]
LOADS = [Workload(1000, 2, make_workload(STATS).frequency, 1)]


def rows(count: int, seed: int, bend: float, noise: float) -> tuple[list[np.ndarray], list[float]]:
    random = np.random.default_rng(seed)
    x = np.concatenate([random.normal(size=(count, 5)), np.ones((count, 1))], axis=1)
    y = bend * (0.1 * x[:, 0] - 0.05 * x[:, 1] + 0.1) + noise * random.normal(size=count)
    return list(x), y.tolist()


@pytest.mark.parametrize(("bend", "share"), [(1.0, 0.35), (0.0, 1.03)])
def test_a_residual_learns_what_there_is_and_is_not_worse_where_there_is_nothing(bend: float, share: float) -> None:
    bare, corrected = [], []
    for seed in range(40):
        x, y = rows(40, seed, bend, 0.02)
        residual = Residual()
        residual.learn(x[:20], y[:20])
        bare += [value**2 for value in y[20:]]
        corrected += [
            (value - np.log(residual.correction(row)[0])) ** 2 for row, value in zip(x[20:], y[20:], strict=True)
        ]
    assert np.sqrt(np.mean(corrected) / np.mean(bare)) < share


def test_few_prices_teach_nothing() -> None:
    residual = Residual()
    x, y = rows(3, 0, 1.0, 0.0)
    residual.learn(x, y)
    assert residual.correction(x[0]) == (1.0, None)


class Modelled:
    """A predictor that is off by a law of the mean width."""

    def __init__(self, energy: float | None = None) -> None:
        self.energy = energy

    def predict(self, allocation: Allocation, workload: Workload) -> Prediction:
        if allocation.mean_bits == 8:
            raise InfeasibleError("too big; use fewer bits")
        cost = Cost(1e-3 * allocation.mean_bits, self.energy, 100, "modelled")
        return Prediction(cost, 0.5, None if self.energy is None else 0.5)

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return self.predict(allocation, workload).cost


class Real:
    def __init__(self) -> None:
        self.calls = 0

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        self.calls += 1
        return Cost(1e-3 * allocation.mean_bits * (1.1 + 0.05 * allocation.mean_bits), None, 100, "measured")


def test_every_mth_price_is_real_and_the_others_learn(tmp_path: Path) -> None:
    real = Real()
    meter = HybridMeter(Modelled(), real, 3, tmp_path / "hybrid.jsonl")
    drawn = mixed(IDS, WIDTHS, LOADS, 90, 5, "host")
    found = [meter.predict(*sample) for sample in drawn]
    assert real.calls == 30
    assert [one.cost.provenance for one in found[:6]] == ["measured", "modelled", "modelled"] * 2
    errors = [
        abs(one.cost.latency_s / real.cost(*sample).latency_s - 1) for one, sample in zip(found, drawn, strict=True)
    ]
    assert max(errors[60:]) < 0.02, "the law is in the features"
    assert max(errors[1:3]) > 0.1, "before anything was learned it is the model's"
    assert found[-1].latency_relative < 0.1 < found[1].latency_relative
    calls = real.calls
    assert [meter.predict(*sample) for sample in drawn] == found, "a price does not change in a search"
    assert real.calls == calls


def test_a_search_that_stopped_goes_on_with_the_same_prices(tmp_path: Path) -> None:
    drawn = mixed(IDS, WIDTHS, LOADS, 40, 6, "host")
    whole = HybridMeter(Modelled(), Real(), 4, tmp_path / "whole.jsonl")
    wanted = [whole.cost(*sample) for sample in drawn]
    first = HybridMeter(Modelled(), Real(), 4, tmp_path / "parts.jsonl")
    for sample in drawn[:22]:
        first.cost(*sample)
    with (tmp_path / "parts.jsonl").open("a") as stream:
        stream.write('{"key": "cut o')
    again = HybridMeter(Modelled(), real := Real(), 4, tmp_path / "parts.jsonl")
    assert [again.cost(*sample) for sample in drawn] == wanted
    assert real.calls == 10 - 6
    assert (tmp_path / "parts.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()


def test_a_hybrid_keeps_what_cannot_be_held_and_refuses_nonsense(tmp_path: Path) -> None:
    meter = HybridMeter(Modelled(), Real(), 2, tmp_path / "hybrid.jsonl")
    for _ in range(2):
        with pytest.raises(InfeasibleError, match="too big"):
            meter.cost(Allocation.of(dict.fromkeys(IDS, 8), 8, "host"), LOADS[0])
    assert meter.priced == 0
    with pytest.raises(WattbitError, match="every must be at least 1"):
        HybridMeter(Modelled(), Real(), 0, tmp_path / "other.jsonl")
    (tmp_path / "strange.jsonl").write_text("[]\n")
    with pytest.raises(WattbitError, match="is no log of a search"):
        HybridMeter(Modelled(), Real(), 2, tmp_path / "strange.jsonl")


def test_a_search_runs_on_a_hybrid(tmp_path: Path) -> None:
    """What PPO sees: a shared chip, modelled by an additive formula, measured at every 20th allocation."""
    from wattbit.policy.search import SearchSettings, search

    class Formula:
        def predict(self, allocation: Allocation, workload: Workload) -> Prediction:
            cost = AdditiveMeter().cost(allocation, workload)
            return Prediction(cost, 0.3)

        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            return self.predict(allocation, workload).cost

    meter = HybridMeter(Formula(), SharedChipMeter(), 20, tmp_path / "search.jsonl")
    stats = make_stats(4)
    settings = SearchSettings(WIDTHS, seeds=(0,), random_seeds=(0,), iterations=8)
    result = search(stats, meter, make_workload(stats), settings)
    lines = [json.loads(line) for line in (tmp_path / "search.jsonl").read_text().splitlines()]
    assert result.best.allocation.mean_bits <= 4
    assert sum(line["real"] is not None for line in lines) == -(-len(lines) // 20)
