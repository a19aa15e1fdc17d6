"""How well an expert's damage is known from a few thousand tokens, and what an optimum over the table is worth.

    python benchmarks/damage.py [--quick] [--json FILE] [--runs FOLDER]

The models of benchmarks/quantizers.py, experts by HQQ. Damage of each expert alone at each width, from the same 32
contexts in each of these ways: the rise of the cross-entropy (as wattbit once had it), the divergence from the float
model's predictions (as it is now), both with `wattbit.policy.smoothing`, half the squared derivative of sampled labels'
log-likelihood along the change (one backward pass), the squared reconstruction error, and the divergence with all other
experts at the budget's width in place of float. First the rank correlation with the divergence on four times the text,
other text; then the perplexity, on the whole validation text but for those 32 contexts, of the exact optimum of each
table. A ratio is above 1 where ours is better; p is of a paired t-test over the seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from quantizers import Found, model_options, models, row
from rows import Benchmark, Row, show, write
from scipy.stats import spearmanr
from torch import Tensor

from wattbit.models.divergence import Predictions
from wattbit.models.expert_model import Matrices
from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.subject import ModelSubject
from wattbit.plan import Allocation, ExpertId, ExpertStats
from wattbit.policy.methods.knapsack import cheapest
from wattbit.policy.smoothing import smoothed
from wattbit.recipe import Quantizer, Recipe

WIDTHS = (2, 3, 4, 8)
BUDGETS = (2.5, 3.0, 3.5)
CONTEXTS = 32  # of calibration
MORE = 4  # times the text that the tables are held against
LABELS = 4  # sampled for each token
QUANTIZER: Quantizer = "hqq"
OURS, BEFORE = "divergence, smoothed", "rise of the loss, smoothed"

Floats = NDArray[np.float64]
Tables = dict[str, Floats]
Weights = Mapping[ExpertId, Matrices]


class Case:
    """One model, with its experts at every width."""

    def __init__(self, learner: MoELearner) -> None:
        self.network, self.model = learner.network, OwnModel.of(learner)
        self.contexts = learner.samples.held[:CONTEXTS]
        self.other = torch.cat([learner.samples.held[CONTEXTS:], learner.samples.valid])
        self.subject = ModelSubject(self.model, self.contexts, self.other)
        self.stats = self.subject.stats(WIDTHS, QUANTIZER)
        self.floats: Weights = {expert: self.model.matrices(expert) for expert in self.model.expert_ids}
        self.rounded: dict[int, Weights] = {}
        for bits in WIDTHS:
            packed = self.subject.quantize(self.recipe([WIDTHS.index(bits)] * len(self.floats)))
            self.rounded[bits] = {expert: one.dequantize() for expert, one in packed.items()}

    def recipe(self, choice: Sequence[int]) -> Recipe:
        widths = {expert: WIDTHS[k] for expert, k in zip(self.model.expert_ids, choice, strict=True)}
        return Recipe("benchmark", Allocation.of(widths), QUANTIZER)

    def tables(self) -> Tables:
        """Damage [N, K] in each of the ways, for every budget the same."""
        rise, divergence = self.rise(), of(self.stats)
        errors = self.subject.reconstruction(WIDTHS, QUANTIZER)
        return {
            "rise of the loss": rise,
            BEFORE: self.smooth(rise),
            "divergence": divergence,
            OURS: of(smoothed(self.stats)),
            "gradients of sampled labels": self.gradients(),
            "reconstruction": np.array([[errors[expert][bits] ** 2 for bits in WIDTHS] for expert in self.floats]),
        }

    def truth(self) -> Floats:
        """The divergence on other text."""
        subject = ModelSubject(self.model, self.other[: MORE * CONTEXTS], self.other)
        return of(subject.stats(WIDTHS, QUANTIZER))

    def smooth(self, damage: Floats) -> Floats:
        rows = zip(self.stats, damage.tolist(), strict=True)
        return of(smoothed([replace(s, damage=tuple(zip(WIDTHS, row, strict=True))) for s, row in rows]))

    def rise(self) -> Floats:
        """Of the cross-entropy, with each expert alone at each width."""

        def loss() -> float:
            return float(self.model.losses(self.contexts).double().mean())

        before = loss()
        return self.each(loss, self.floats) - before

    def around(self, bits: int) -> Floats:
        """The divergence from the float model with all other experts at a width."""

        def logits() -> Tensor:
            return self.model.tail(0, self.contexts)().flatten(0, 1)

        exact = Predictions.of(same, logits())
        for expert, matrices in self.rounded[bits].items():
            self.model.replace(expert, matrices)
        found = self.each(lambda: float(exact.divergence(same, logits()).double().mean()), self.rounded[bits])
        for expert, matrices in self.floats.items():
            self.model.replace(expert, matrices)
        return found

    def each(self, price: Callable[[], float], resting: Weights) -> Floats:
        """[N, K]: the price with each expert at each width, the others at rest."""
        found = np.zeros((len(resting), len(WIDTHS)))
        for i, (expert, rest) in enumerate(resting.items()):
            for k, bits in enumerate(WIDTHS):
                self.model.replace(expert, self.rounded[bits][expert])
                found[i, k] = price()
            self.model.replace(expert, rest)
        return found

    def gradients(self) -> Floats:
        """Half the mean over tokens of (g . dy)^2: g the gradient of the log-likelihood of labels drawn from the float
        model at a layer's output, dy an expert's change of that output."""
        x, layers = self.network.embedding(self.contexts[:, :-1]), []
        for block in self.network.layers:
            x, inputs = block.attend(x)
            y, routing = block.mixture(inputs)
            layers.append((inputs.detach(), y, routing))
            x = x + y.view_as(x)
        chance = self.network.head(x).flatten(0, 1).log_softmax(dim=-1)
        labels = torch.multinomial(chance.exp(), LABELS, generator=torch.Generator().manual_seed(0))
        slopes = [
            torch.autograd.grad(chance.gather(1, one[:, None]).sum(), [y for _, y, _ in layers], retain_graph=True)
            for one in labels.T
        ]
        found = np.zeros((len(self.floats), len(WIDTHS)))
        for i, (expert, exact) in enumerate(self.floats.items()):
            inputs, _, routing = layers[expert.layer]
            token, slot = (routing.experts == expert.expert).nonzero(as_tuple=True)
            for k, bits in enumerate(WIDTHS):
                was, now = (run(one, inputs[token]) for one in (exact, self.rounded[bits][expert]))
                change = (now - was) * routing.gates.detach()[token, slot, None]  # [n, D]
                squares = [(change * slope[expert.layer][token]).sum(dim=-1).square().sum() for slope in slopes]
                found[i, k] = float(sum(squares)) / (2 * LABELS * len(labels))
        return found

    def perplexity(self, damage: Floats, budget: float) -> float:
        """Of other text, with experts at the exact optimum of a table."""
        choice = cheapest(damage, np.array(WIDTHS), int(budget * len(damage) + 1e-9))
        return self.subject.perplexity(self.recipe(choice.tolist()))


def of(stats: Sequence[ExpertStats]) -> Floats:
    return np.array([[s.damage_at(bits) for bits in WIDTHS] for s in stats])


def run(matrices: Matrices, x: Tensor) -> Tensor:
    return F.linear(F.linear(x, matrices["w1"]).relu(), matrices["w2"])


def same(logits: Tensor) -> Tensor:
    return logits


def measure(case: Case, found: Found) -> None:
    tables, truth = case.tables(), case.truth()
    for name, damage in tables.items():
        for k, bits in enumerate(WIDTHS[:-1]):
            rank = float(spearmanr(damage[:, k], truth[:, k]).statistic)
            found.setdefault(f"rank correlation at {bits} bits", {}).setdefault(name, []).append(rank)
    around = {bits: case.around(bits) for bits in sorted({int(budget) for budget in BUDGETS})}
    for budget in BUDGETS:
        at = found.setdefault(f"exact optimum at {budget} mean bits", {})
        extra = {"others at the budget's width": around[int(budget)], "divergence on other text": truth}
        for name, damage in (tables | extra).items():
            at.setdefault(name, []).append(case.perplexity(damage, budget))
        if budget == int(budget):
            uniform = [WIDTHS.index(int(budget))] * len(truth)
            at.setdefault("uniform", []).append(case.subject.perplexity(case.recipe(uniform)))
        at.setdefault("float", []).append(case.subject.perplexity(None))


@click.command(cls=Benchmark, help=__doc__)
@model_options
def main(quick: bool, out: Path | None, runs: Path) -> None:
    found: Found = {}
    seeds = []
    for seed, data, model_dir in models(quick, runs):
        seeds.append(seed)
        measure(Case(MoELearner.open(data, model_dir)), found)
    rows: list[Row] = []
    for case, values in found.items():
        ours, metric = values[OURS], "rank correlation" if "rank" in case else "perplexity"
        for name, peer in values.items():
            if name != OURS:
                one = row(case, f"{metric}, {OURS}", ours, peer, name, tuple(seeds))
                rows.append(replace(one, ratio=1 / one.ratio) if metric == "rank correlation" else one)
        show(rows[1 - len(values) :])
    if out:
        write(rows, out)


if __name__ == "__main__":
    main()
