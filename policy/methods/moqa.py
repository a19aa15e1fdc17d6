"""MoQa, renamed DynaMo: expert significance clustered into widths, and a cache of channels in float16 (Zheng et al.,
arXiv 2503.21135; v3 is DATE 2026).

An expert's significance is the sum of its channels' significance over the tokens sent to it, as a share of its layer's
sum (equation 1). Over several data sets the shares are averaged (equation 2, the diagonal of the joint distribution).
Fuzzy c-means with c = 4 and m = 2 (algorithm 1) clusters all experts; the cluster with the highest centre gets 8 bits,
then 6, 4 and 2; a tie goes to the lower one ("low precision first"). The channels whose significance differs most
between the data sets, about 1 % of each expert's, are kept in float16; on a change of the data set the experts are
scored again and only those channels are quantized anew: decide with the other subject's order, `float_columns` says
which.

Chosen where the paper is silent:
- A channel's significance S_ch is never defined: here it is the gate-weighted mean |activation| times the L2 norm of
  the weights that read it (`Subject.channel_activity`), times the tokens for the sum over them.
- Its clusters give whatever mean they give. To meet a budget, the least significant experts step down one width each
  until it fits, again and again; what is then left goes to the most significant ones.
- Where the budget offers fewer of the widths 2, 4, 6, 8 there are as many clusters as widths.
- "Varies most": the variance over the data sets of S_ch, each data set's divided by its mean over the expert.
- Float columns are paid for: the widths come down until the whole is within the budget's bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from wattbit.errors import WattbitError
from wattbit.plan import ExpertId
from wattbit.policy.methods.clustering import fuzzy_means
from wattbit.policy.methods.inputs import bits_for, by_layer, open_widths, recipe, statistics, step_to
from wattbit.policy.methods.size import budget_bytes, uniform_bytes
from wattbit.policy.problem import Choice, Floats
from wattbit.recipe import Budget, Quantizer, Recipe, Subject

WIDTHS = (2, 4, 6, 8)
CACHED_SHARE = 0.01  # of an expert's input columns

Activity = Mapping[ExpertId, tuple[float, ...]]


@dataclass(frozen=True)
class MoQa:
    """others: the same model on other data sets, to average significance over and to cache channels for."""

    others: tuple[Subject, ...] = ()
    quantizer: Quantizer = "gptq"
    name = "moqa"

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """As `Method.decide`; without `others` no channel is cached."""
        widths = np.array(open_widths(self.name, budget, WIDTHS))
        subjects = (subject, *self.others)
        activity = [one.channel_activity() for one in subjects]
        scores = np.mean([significance(s, a) for s, a in zip(subjects, activity, strict=True)], axis=0)  # [N]
        experts = tuple(sorted(subject.experts))
        chosen = clustered(scores, len(widths))
        order = np.lexsort((np.arange(len(experts)), scores))
        columns = float_columns(activity) if self.others else {}
        bits = bits_for(budget, len(experts))
        allowed = budget_bytes(subject, budget, self.quantizer) if columns else 0.0
        floor = int(widths[0]) * len(experts)
        while True:
            fitted = widths[step_to(chosen, order, widths, bits)]
            made = replace(recipe(self.name, experts, fitted.tolist(), self.quantizer, budget), float_columns=columns)
            over = subject.memory_bytes(made) - allowed if columns else 0.0
            if over <= 0:
                return made
            if int(fitted.sum()) == floor:
                raise WattbitError(
                    f"{self.name}'s float channels do not fit a budget of {budget.mean_bits} bits; the smallest "
                    f"feasible one is about {budget.mean_bits + over / self._bytes_a_bit(subject, budget):.3g} bits"
                )
            bits = int(fitted.sum()) - max(int(over / self._bytes_a_bit(subject, budget) * len(experts)), 1)
            bits = max(bits, floor)

    def _bytes_a_bit(self, subject: Subject, budget: Budget) -> float:
        """Bytes of one bit more for every expert."""
        low, high = min(budget.weight_bits), max(budget.weight_bits)
        if low == high:
            return uniform_bytes(subject, budget, low, self.quantizer) / low
        spread = uniform_bytes(subject, budget, high, self.quantizer)
        return (spread - uniform_bytes(subject, budget, low, self.quantizer)) / (high - low)


def significance(subject: Subject, activity: Activity) -> Floats:
    """Each expert's share [N] of its layer's significance; WattbitError names an expert whose is no number."""
    stats = statistics(subject)
    total = np.array([s.tokens * sum(activity[s.expert]) for s in stats])
    for i in np.flatnonzero(~np.isfinite(total)):
        raise WattbitError(f"the channel activity of {stats[i].expert} is no number; look at its weights")
    for members in by_layer([s.expert for s in stats]):
        total[members] /= total[members].sum() or 1.0
    return total


def clustered(scores: Floats, clusters: int) -> Choice:
    """Index of each expert's cluster [N], 0 the least significant; of equal memberships the lower."""
    _, memberships = fuzzy_means(scores, clusters)
    choice: Choice = memberships.argmax(axis=1)
    return choice


def float_columns(activities: Sequence[Activity], share: float = CACHED_SHARE) -> dict[ExpertId, tuple[int, ...]]:
    """Input columns of each expert whose significance differs most between data sets, at least one.

    activities: of one model on each data set. Raises WattbitError for fewer than two.
    """
    if len(activities) < 2:
        raise WattbitError(f"channels vary between at least 2 data sets, not {len(activities)}; name another one")
    found = {}
    for expert in sorted(activities[0]):
        active = np.array([one[expert] for one in activities])  # [data sets, D]
        means = active.mean(axis=1, keepdims=True)
        spread = (active / np.where(means > 0, means, 1.0)).var(axis=0)
        count = max(round(share * len(spread)), 1)
        found[expert] = tuple(sorted(np.argsort(-spread, kind="stable")[:count].tolist()))
    return found
