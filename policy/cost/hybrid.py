"""A model that is measured now and then: the real meter prices every M-th allocation, and the others learn from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import digest_json
from wattbit.lines import read_lines
from wattbit.plan import Allocation, Cost, Meter, Workload
from wattbit.policy.cost.fitting import Floats
from wattbit.policy.cost.model import Prediction, Predictor
from wattbit.policy.cost.residual import Residual, features
from wattbit.policy.pricing import Price, prices, width


class HybridMeter:
    """`wattbit.plan.Meter`: a model, whose every M-th allocation a real meter prices instead, the first among them.

    A price of the real meter is returned as it is, with its provenance; the others are `modelled`, with what the
    residual learned by then. log: JSON lines, one an allocation that was new: its digest, the model's price, the
    corrected one with its interval, and the real one where there is one; from them a search that stopped learns again.
    Take a `wattbit.policy.recorded.RecordedMeter` as the real one: it keeps prices and tries again what fails.
    """

    def __init__(self, model: Predictor, real: Meter, every: int, log: Path) -> None:
        """Raises WattbitError when `every` is below 1 or the log is of no search."""
        if every < 1:
            raise WattbitError(f"every must be at least 1 allocation, not {every}")
        self.model, self.real, self.every, self.log = model, real, every, log
        self.latency, self.energy = Residual(), Residual()
        self.priced = 0
        self._known: dict[str, Prediction | InfeasibleError] = {}
        log.parent.mkdir(parents=True, exist_ok=True)
        self._resume()

    def cost(self, allocation: Allocation, workload: Workload) -> Cost:
        return self.predict(allocation, workload).cost

    @property
    def width(self) -> int:
        return width(self.real)

    def costs(self, allocations: Sequence[Allocation], workload: Workload) -> list[Price]:
        """Prices; those that are real are taken side by side where the real meter can."""
        found = self._predictions(allocations, workload)
        return [one.cost if isinstance(one, Prediction) else one for one in found]

    def predict(self, allocation: Allocation, workload: Workload) -> Prediction:
        """A price with its interval; a real one has none. Raises InfeasibleError of either meter."""
        (found,) = self._predictions([allocation], workload)
        if isinstance(found, InfeasibleError):
            raise found
        return found

    def _predictions(self, allocations: Sequence[Allocation], workload: Workload) -> list[Prediction | InfeasibleError]:
        keys = [digest_json([allocation.digest, repr(workload)]) for allocation in allocations]
        new = {key: one for key, one in zip(keys, allocations, strict=True) if key not in self._known}
        bare: dict[str, Prediction] = {}
        for key, one in new.items():
            try:
                bare[key] = self.model.predict(one, workload)
            except InfeasibleError as error:
                self._known[key] = error
        turns = [key for number, key in enumerate(bare, self.priced) if number % self.every == 0]
        real = dict(zip(turns, prices(self.real, [new[key] for key in turns], workload), strict=True))
        for key, predicted in bare.items():
            price = real.get(key)
            if isinstance(price, InfeasibleError):
                self._known[key] = price
            else:
                self._known[key] = self._take(key, predicted, price, features(new[key], workload, predicted.cost))
        return [self._known[key] for key in keys]

    def _take(self, key: str, bare: Prediction, real: Cost | None, row: Floats) -> Prediction:
        """Log a new price and learn from a real one."""
        corrected = self._corrected(bare, row)
        self.priced += 1
        record: dict[str, Any] = {"key": key, "modelled": bare.cost.to_json(), "corrected": corrected.cost.to_json()}
        record |= {"relative": [corrected.latency_relative, corrected.energy_relative]}
        record["real"] = real.to_json() if real else None
        if real is not None:
            record["features"] = row.tolist()
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        if real is None:
            return corrected
        self._learn(row.tolist(), bare.cost, real)
        return _certain(real)

    def _learn(self, row: list[float], bare: Cost, real: Cost) -> None:
        self.latency.learn([np.array(row)], [float(np.log(real.latency_s / bare.latency_s))])
        if bare.energy_j and real.energy_j:
            self.energy.learn([np.array(row)], [float(np.log(real.energy_j / bare.energy_j))])

    def _corrected(self, bare: Prediction, row: Floats) -> Prediction:
        factor, half = self.latency.correction(row)
        energy, energy_half = bare.cost.energy_j, bare.energy_relative
        if energy is not None:
            by, learned = self.energy.correction(row)
            energy, energy_half = energy * by, energy_half if learned is None else learned
        cost = Cost(bare.cost.latency_s * factor, energy, bare.cost.memory_bytes, "modelled")
        return Prediction(cost, bare.latency_relative if half is None else half, energy_half)

    def _resume(self) -> None:
        if not self.log.exists():
            return
        for line in read_lines(self.log):
            try:
                record = json.loads(line)
                bare, real = Cost.from_json(record["modelled"]), record["real"]
            except (ValueError, KeyError, TypeError):
                raise WattbitError(f"{self.log} is no log of a search; move it away") from None
            self.priced += 1
            if real:
                cost = Cost.from_json(real)
                self._learn(record["features"], bare, cost)
                self._known[record["key"]] = _certain(cost)
            else:
                self._known[record["key"]] = Prediction(Cost.from_json(record["corrected"]), *record["relative"])


def _certain(cost: Cost) -> Prediction:
    return Prediction(cost, 0.0, None if cost.energy_j is None else 0.0)
