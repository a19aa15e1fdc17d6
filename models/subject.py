"""A model with calibration text as a method sees it: implements `wattbit.recipe.Subject` for any `ExpertModel`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.divergence import Predictions
from wattbit.models.expert_model import ExpertModel, LayerTrace, Matrices
from wattbit.models.packed import PackedExpert
from wattbit.models.quantizers.apply import (
    ExpertRecipe,
    check_recipe,
    expert_bytes,
    goes_together,
    quantize_expert,
    quantize_together,
)
from wattbit.plan import ExpertId, ExpertStats, Precision
from wattbit.progress import Progress, silent
from wattbit.recipe import Pruning, Quantizer, Recipe

FLOAT_BYTES = 2  # of a weight of the float model, in memory_bytes
BATCH_TOKENS = 8192  # that go through the model together
LOGITS = 2**28  # of a damaged model that exist together
TOGETHER = 2**25  # weights, or numbers of GPTQ's Hessians, of the experts that are quantized together


class ModelSubject:
    """Takes the model's weights as they are when it is made; between its calls the model has them back.

    calibration, held_out: contexts [n, S + 1] of different text. Everything is measured on the first but `perplexity`.
    What was computed once is kept, each expert at each `ExpertRecipe` too: make a new subject for other weights.
    """

    def __init__(self, model: ExpertModel, calibration: Tensor, held_out: Tensor, progress: Progress = silent) -> None:
        self.model = model
        self._calibration = calibration
        self._held_out = held_out
        self._progress = progress
        self._float = {expert: model.matrices(expert) for expert in model.expert_ids}
        self._packed: dict[tuple[ExpertId, ExpertRecipe], PackedExpert] = {}
        self._damage: dict[tuple[ExpertId, ExpertRecipe], float] = {}
        self._errors: dict[tuple[ExpertId, ExpertRecipe], float] = {}
        self._perplexity: dict[str, float] = {}
        self._traced: list[LayerTrace] | None = None
        self._gradients: dict[ExpertId, float] | None = None

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        return self.model.expert_ids

    @property
    def top_k(self) -> int:
        return self.model.top_k

    def stats(self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn") -> tuple[ExpertStats, ...]:
        """Damage is measured on the whole model (`models.divergence`); `router_change` is the final norm where the
        first is unknown; `max_variance` is the largest over the rows of all matrices that read the input."""
        widths = {bits: ExpertRecipe(bits, quantizer) for bits in sorted(weight_bits)}
        self._measure_damage(tuple(widths.values()))
        if self._gradients is None:
            self._gradients = self.model.gradient_norms(self._calibration)
        return tuple(
            replace(
                self._describe(expert, self._gradients[expert]),
                damage=tuple((bits, self._damage[expert, how]) for bits, how in widths.items()),
            )
            for expert in self.experts
        )

    def reconstruction(
        self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn"
    ) -> Mapping[ExpertId, Mapping[int, float]]:
        """The calibration text counts as one batch."""
        widths = {bits: ExpertRecipe(bits, quantizer) for bits in weight_bits}
        self._pack_together([(expert, how) for expert in self.experts for how in widths.values()])
        for how in widths.values():
            for expert in self.experts:
                if (expert, how) not in self._errors:
                    self._errors[expert, how] = self._error(expert, how)
        return {e: {bits: self._errors[e, how] for bits, how in widths.items()} for e in self.experts}

    def gate_ratios(self) -> tuple[float, ...]:
        if self.top_k == 1:
            raise WattbitError("a model that sends each token to one expert has no second gate; leave pruning out")
        largest = (t.gates.topk(2, dim=1).values for t in self._trace())  # DeepSeek routes in no order
        return tuple((two[:, 1] / two[:, 0]).median().item() for two in largest)

    def channel_activity(self) -> Mapping[ExpertId, tuple[float, ...]]:
        """The mean is over the tokens that the expert saw, 0 where there were none; the norm over all matrices that
        read the input."""
        found = {}
        for expert in self.experts:
            inputs, gates = self._inputs(expert)
            mean = (inputs.abs() * gates[:, None]).sum(dim=0) / max(1, len(inputs))  # [D]
            first = torch.cat([self._float[expert][name].float() for name in self.model.first])
            found[expert] = tuple((mean * first.norm(dim=0)).tolist())
        return found

    def perplexity(self, recipe: Recipe | None) -> float:
        key = "" if recipe is None else str(recipe.to_json() | {"method": ""})
        if key not in self._perplexity:
            with self._quantized(recipe):
                loss = self._loss(self._held_out, None if recipe is None else recipe.pruning)
            self._perplexity[key] = math.exp(loss)
        return self._perplexity[key]

    def memory_bytes(self, recipe: Recipe | None) -> int:
        if recipe is None:
            return sum(FLOAT_BYTES * w.numel() for matrices in self._float.values() for w in matrices.values())
        sizes = {e: {name: (len(w), w.shape[1]) for name, w in matrices.items()} for e, matrices in self._float.items()}
        return sum(expert_bytes(self.model, sizes[e], ExpertRecipe.of(recipe, e)) for e in self.experts)

    def quantize(self, recipe: Recipe, layer: int | None = None) -> dict[ExpertId, PackedExpert]:
        """Every expert, or those of one layer, as the recipe says, and which quantizer it got; see `apply.fallen_back`.
        WattbitError for a recipe of another model."""
        check_recipe(recipe, self.experts, self._float[self.experts[0]][self.model.first[0]].shape[1])
        wanted = [expert for expert in self.experts if layer in (None, expert.layer)]
        self._pack_together([(expert, ExpertRecipe.of(recipe, expert)) for expert in wanted])
        found = {}
        for expert in wanted:
            found[expert] = self._pack(expert, ExpertRecipe.of(recipe, expert))
            self._progress("quantize", len(found), len(wanted))
        return found

    def tokens(self) -> dict[ExpertId, int]:
        """Calibration tokens that each expert saw."""
        counts = [layer.experts.flatten().bincount(minlength=len(self.experts)).tolist() for layer in self._trace()]
        return {expert: counts[expert.layer][expert.expert] for expert in self.experts}

    def _trace(self) -> list[LayerTrace]:
        if self._traced is None:
            self._traced = self.model.trace(self._calibration[:, :-1])
        return self._traced

    def _inputs(self, expert: ExpertId) -> tuple[Tensor, Tensor]:
        """What the expert read of the calibration text [n, D], and its gates [n]."""
        layer = self._trace()[expert.layer]
        tokens, gates = layer.rows(expert.expert)
        return layer.inputs[tokens].float(), gates.float()

    def _pack(self, expert: ExpertId, how: ExpertRecipe) -> PackedExpert:
        if (expert, how) not in self._packed:
            inputs, _ = self._inputs(expert)
            try:
                self._packed[expert, how] = quantize_expert(self.model, self._float[expert], how, inputs)
            except WattbitError as error:
                raise WattbitError(f"{expert} of the model: {error}") from None
        return self._packed[expert, how]

    def _pack_together(self, wanted: Sequence[tuple[ExpertId, ExpertRecipe]]) -> None:
        """What can be packed many experts at a time."""
        groups: dict[ExpertRecipe, list[ExpertId]] = {}
        seen = self.tokens()
        for expert, how in wanted:
            if (expert, how) not in self._packed and goes_together(how, seen[expert], self._float[expert]):
                groups.setdefault(how, []).append(expert)
        for how, experts in groups.items():
            shapes = [w.shape for w in self._float[experts[0]].values()]
            numbers = sum(columns * (columns if how.quantizer == "gptq" else rows) for rows, columns in shapes)
            size = max(1, TOGETHER // numbers)
            for start in range(0, len(experts), size):
                part = experts[start : start + size]
                matrices, inputs = [self._float[e] for e in part], [self._inputs(e)[0] for e in part]
                try:
                    packed = quantize_together(self.model, matrices, how, inputs)
                except WattbitError:
                    return  # each by itself, which says whose weights or inputs it is
                self._packed |= {(e, how): one for e, one in zip(part, packed, strict=True)}
                self._progress("quantize", start + len(part), len(experts))

    @contextmanager
    def _quantized(self, recipe: Recipe | None) -> Iterator[None]:
        """The model with its experts as the recipe says."""
        packed = {} if recipe is None else self.quantize(recipe)
        try:
            for expert, found in packed.items():
                self.model.replace(expert, found.dequantize())
            yield
        finally:
            for expert in packed:
                self.model.replace(expert, self._float[expert])

    def _loss(self, contexts: Tensor, pruning: Pruning | None = None) -> float:
        """Mean cross-entropy in nats a token."""
        return _mean(self.model.losses(part, pruning) for part in self._parts(contexts))

    def _parts(self, contexts: Tensor, tokens: int = BATCH_TOKENS) -> tuple[Tensor, ...]:
        """Contexts of so many tokens together, and no more than `BATCH_TOKENS`."""
        return contexts.split(max(1, min(tokens, BATCH_TOKENS) // contexts.shape[1]))

    def _measure_damage(self, widths: Sequence[ExpertRecipe]) -> None:
        for how in widths:
            Precision(how.bits)  # refuses unknown widths before the work
        missing = [(e, how) for e in self.experts for how in widths if (e, how) not in self._damage]
        for layer in sorted({expert.layer for expert, _ in missing}):
            own = [(e, how) for e, how in missing if e.layer == layer]
            self._pack_together(own)
            self._damage |= self._divergences(layer, own)

    def _divergences(
        self, layer: int, wanted: Sequence[tuple[ExpertId, ExpertRecipe]]
    ) -> dict[tuple[ExpertId, ExpertRecipe], float]:
        """Mean divergence from the float model, in nats a token, with one expert of a layer alone quantized so."""
        seen, words = self.tokens(), self.model.tail(layer, self._calibration[:1])().shape[-1]
        sums, tokens, parts = dict.fromkeys(wanted, 0.0), 0, self._parts(self._calibration, LOGITS // words)
        for number, part in enumerate(parts):
            tail = self.model.tail(layer, part)
            exact = tail().flatten(0, 1)
            predictions, tokens = Predictions.of(_same, exact), tokens + len(exact)
            for done, (expert, how) in enumerate(wanted, number * len(wanted) + 1):
                if seen[expert]:
                    self.model.replace(expert, self._pack(expert, how).dequantize())
                    sums[expert, how] += predictions.divergence(_same, tail().flatten(0, 1)).double().sum().item()
                    self.model.replace(expert, self._float[expert])
                self._progress(f"damage of layer {layer}", done, len(parts) * len(wanted))
        return {key: nats / tokens for key, nats in sums.items()}

    def _error(self, expert: ExpertId, how: ExpertRecipe) -> float:
        inputs, gates = self._inputs(expert)
        exact, rounded = (
            self._run(matrices, inputs) for matrices in (self._float[expert], self._pack(expert, how).dequantize())
        )
        return ((exact - rounded) * gates[:, None]).norm().item()

    def _run(self, matrices: Matrices, x: Tensor) -> Tensor:
        """The expert's outputs [n, D] for inputs x [n, D]."""
        full = {name: weights.float() for name, weights in matrices.items()}
        return F.linear(self.model.hidden(full, x), full[self.model.last])

    def _describe(self, expert: ExpertId, gradient_norm: float) -> ExpertStats:
        """All but the damage."""
        layer = self._trace()[expert.layer]
        tokens, gates = layer.rows(expert.expert)
        matrices = self._float[expert]
        weights = torch.cat([w.flatten() for w in matrices.values()]).double()
        centred = weights - weights.mean()
        initial = self.model.initial_router_norms(expert.layer)
        norm = self.model.router(expert.layer)[expert.expert].float().norm().item()
        return ExpertStats(
            expert=expert,
            frequency=len(tokens) / layer.experts.numel(),
            contribution=(gates.sum() / layer.gates.sum()).item(),
            gradient_norm=gradient_norm,
            router_change=norm - (0.0 if initial is None else initial[expert.expert]),
            max_variance=max(matrices[name].float().var(dim=1).max().item() for name in self.model.first),
            kurtosis=(centred.pow(4).mean() / centred.pow(2).mean().square() - 3).item(),
            damage=(),
            tokens=len(tokens),
        )


def _mean(losses: Iterable[Tensor]) -> float:
    """Of parts [n, S]."""
    return torch.cat(list(losses)).double().mean().item()


def _same(logits: Tensor) -> Tensor:
    return logits
