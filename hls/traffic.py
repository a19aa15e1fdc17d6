"""How many vectors a launch brings to each expert: batches drawn from the measured routing frequencies.

The time of a launch is that of its slowest engine, whose expectation over random loads is above the time of the
expected load; and whether an expert's weights are fetched depends on whether any token wants it. Neither has a simple
closed form, so a plan is priced on the same fixed sample of batches as every other. Tokens are drawn independently:
text whose neighbouring tokens share experts spreads more.
"""

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, Workload

TOKENS = 16384  # drawn for a layer in all
BATCHES = (32, 1024)  # fewest and most
SEED = 20
REMEMBERED = 2**23  # numbers of `Traffic.brought` that are kept, 32 MB

Floats = NDArray[np.float32]


@dataclass(eq=False)
class Traffic:
    """counts [S, N]: vectors of each sampled batch for each expert. layer [N]: of each expert, from 0, ascending."""

    experts: tuple[ExpertId, ...]
    layer: NDArray[np.int64]
    counts: Floats
    rows: Floats = field(init=False)  # [N, S], the counts by expert
    index: dict[ExpertId, int] = field(init=False)
    vectors: Floats = field(init=False)  # [N], mean a batch
    layers_of: list[int] = field(init=False)  # [N], `layer`
    place: list[int] = field(init=False)  # [N], of each expert when the busiest are first
    _times: dict[tuple[int, float], tuple[Floats, NDArray[np.float64]]] = field(init=False, default_factory=dict)
    _means: dict[tuple[int, float], list[float]] = field(init=False, default_factory=dict)
    _brought: dict[tuple[int, ...], Floats] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.index = {expert: i for i, expert in enumerate(self.experts)}
        self.rows = np.ascontiguousarray(self.counts.T)
        self.vectors = self.counts.mean(axis=0)
        self.layers_of = self.layer.tolist()
        self.place = np.argsort(np.argsort(-self.vectors, kind="stable")).tolist()

    @property
    def layers(self) -> int:
        return int(self.layer[-1]) + 1

    def brings(self, experts: tuple[int, ...]) -> float:
        """Vectors a batch, of all layers."""
        return float(self.vectors[list(experts)].sum())

    def launched(self, experts: tuple[int, ...]) -> float:
        """Vectors that a launch brings to these experts: the root mean square over the layers."""
        by_layer = np.bincount(self.layer[list(experts)], self.vectors[list(experts)], self.layers)
        return float(np.sqrt((by_layer**2).mean()))

    def busy(
        self, experts: tuple[int, ...], per_vector: int, load: float, start: float, batches: int | None = None
    ) -> Floats:
        """Cycles [layers, S] of one engine in the launches of the first `batches`; `start` counts where it has work."""
        if load:
            total = self._by_layer(self.times(per_vector, load)[0][:, :batches], experts)
        else:  # an engine's cycles are its vectors', whichever expert they are for
            total = self.brought(experts)[:, :batches] * np.float32(per_vector)
        if start:
            total += (total > 0) * np.float32(start)
        return total

    def brought(self, experts: tuple[int, ...]) -> Floats:
        """Vectors [layers, S] that the sampled batches bring to these experts."""
        if len(self._brought) * self.layers * len(self.counts) > REMEMBERED:
            self._brought.clear()
        if experts not in self._brought:
            self._brought[experts] = self._by_layer(self.rows, experts)
        return self._brought[experts]

    def _by_layer(self, rows: Floats, experts: tuple[int, ...]) -> Floats:
        """The sum [layers, S] of some experts' rows of [N, S], layer by layer."""
        if self.layers == 1:
            return rows[list(experts)].sum(axis=0, keepdims=True)
        ids = np.sort(experts)
        layer = self.layer[ids]
        starts = np.concatenate(([0], np.flatnonzero(layer[1:] != layer[:-1]) + 1))
        total = np.zeros((self.layers, rows.shape[1]), np.float32)
        total[layer[starts]] = np.add.reduceat(rows[ids], starts, axis=0)
        return total

    def times(self, per_vector: int, load: float) -> tuple[Floats, NDArray[np.float64]]:
        """Cycles that each expert keeps an engine busy: in each batch [N, S], and on average [N].

        The next expert is fetched while vectors of the one before are computed: an engine's queue is deep enough for
        its header to be seen in time (`shell.queue_words`).
        """
        key = (per_vector, load)
        if key not in self._times:
            busy = self.rows * np.float32(per_vector)
            if load:
                busy = np.where(self.rows > 0, np.maximum(busy, np.float32(load)), np.float32(0))
            self._times[key] = (busy, busy.mean(axis=1, dtype=np.float64))
        return self._times[key]

    def mean(self, per_vector: int, load: float) -> list[float]:
        """Cycles [N] that each expert keeps an engine busy, on average."""
        key = (per_vector, load)
        if key not in self._means:
            self._means[key] = self.times(per_vector, load)[1].tolist()
        return self._means[key]


@lru_cache(maxsize=128)  # a model's layers may be spread over dozens of boards, each with a workload of its own
def traffic(workload: Workload) -> Traffic:
    """Sampled batches of a workload. Raises WattbitError if its frequencies are no shares or leave too few experts."""
    shares = dict(sorted(workload.frequency))
    if not shares:
        raise WattbitError("the workload has no frequency of any expert; run `wattbit stats` again")
    experts = tuple(shares)
    numbers = sorted({expert.layer for expert in experts})
    layer = np.array([numbers.index(expert.layer) for expert in experts])
    batches = min(max(TOKENS // workload.batch, BATCHES[0]), BATCHES[1])
    counts = np.zeros((batches, len(experts)), np.float32)
    rng = np.random.default_rng(SEED)
    for one in range(len(numbers)):
        mine = np.flatnonzero(layer == one)
        share = np.array([shares[experts[i]] for i in mine])
        if not share.sum() > 0 or share.min() < 0:
            raise WattbitError(f"the frequencies of layer {numbers[one]} are no shares; run `wattbit stats` again")
        if (wanted := int((share > 0).sum())) < min(workload.top_k, len(share)):
            raise WattbitError(
                f"a token takes {workload.top_k} experts, but only {wanted} of layer {numbers[one]} has a frequency; "
                "run `wattbit stats` again"
            )
        counts[:, mine] = _draw(share / share.sum(), workload.top_k, batches, workload.batch, rng)
    return Traffic(experts, layer, counts)


def _draw(share: NDArray[np.float64], top_k: int, batches: int, tokens: int, rng: np.random.Generator) -> Floats:
    """Vectors [batches, E] of a layer: each token takes `top_k` different experts, each as often as its share says.

    Systematic sampling: experts lie in random order on a line, each as long as it is often taken, at most 1, and a
    token takes those under `top_k` points 1 apart.
    """
    length = np.minimum(share * top_k, 1.0)
    while length.sum() < top_k - 1e-9 and (length < 1).any():  # what was cut off goes to the others
        free = length < 1
        length[free] = np.minimum(length[free] * (top_k - (~free).sum()) / length[free].sum(), 1.0)
    counts = np.zeros((batches, len(share)), np.float32)
    for batch in range(batches):
        order = rng.random((tokens, len(share))).argsort(axis=1)
        ends = np.cumsum(length[order], axis=1)  # [T, E]
        taken = np.diff(np.floor(ends + rng.random((tokens, 1))), axis=1, prepend=0.0)  # 0 or 1
        counts[batch] = np.bincount(order.ravel(), taken.ravel(), len(share))
    return counts
