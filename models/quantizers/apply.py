"""One expert as a recipe wants it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.expert_model import Matrices
from wattbit.models.packed import PackedExpert, PackedMatrix, PackedWeight, other_columns, packed_bytes
from wattbit.models.quantizers import gptq, hqq, rtn
from wattbit.models.quantizers.grid import Quantized, group_columns
from wattbit.models.quantizers.low_rank import compensate
from wattbit.plan import Allocation, ExpertId
from wattbit.recipe import Quantizer, Recipe

MIN_TOKENS = 64  # calibration tokens that GPTQ needs at the least, see `tokens_needed`
COMPENSATOR_GROUP = 64  # values of a compensator that share a scale (arXiv 2504.02658)


class Expert(Protocol):
    """What quantizing an expert needs to know of its kind; every `ExpertModel` is one."""

    @property
    def first(self) -> tuple[str, ...]: ...

    @property
    def last(self) -> str: ...

    def hidden(self, matrices: Matrices, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ExpertRecipe:
    """What a `Recipe` says of one expert."""

    bits: int
    quantizer: Quantizer = "rtn"
    group_size: int | None = None
    rank: int = 0
    compensator_bits: int = 3
    float_columns: tuple[int, ...] = ()

    @classmethod
    def of(cls, recipe: Recipe, expert: ExpertId) -> Self:
        return cls(
            recipe.allocation.precision(expert).weight_bits,
            recipe.quantizer,
            recipe.group_size,
            recipe.ranks.get(expert, 0),
            recipe.compensator_bits,
            tuple(sorted(recipe.float_columns.get(expert, ()))),
        )


def check_recipe(recipe: Recipe, experts: Collection[ExpertId], columns: int) -> None:
    """Raise WattbitError where a recipe is of a model with other experts, or experts of fewer input columns."""
    check_allocation(recipe.allocation, experts)
    if strange := sorted({*recipe.ranks, *recipe.float_columns}.difference(experts)):
        raise WattbitError(
            f"the recipe has ranks or float_columns of {strange[0]}, which the model lacks; leave it out"
        )
    for expert, kept in recipe.float_columns.items():
        if max(kept, default=0) >= columns or len(kept) == columns:
            raise WattbitError(
                f"float_columns of {expert} must leave some of the columns 0..{columns - 1}, not {max(kept)}"
            )


def check_allocation(allocation: Allocation, experts: Collection[ExpertId]) -> None:
    """Raise WattbitError where a recipe's allocation is of a model with other experts."""
    placed = {placement.expert for placement in allocation.placements}
    if strange := sorted(placed.symmetric_difference(experts)):
        where = "the recipe, but not in the model" if strange[0] in placed else "the model, but not in the recipe"
        raise WattbitError(f"{strange[0]} is in {where} of {len(experts)} experts; give that model's own recipe")


@torch.no_grad()
def quantize_expert(kind: Expert, matrices: Matrices, how: ExpertRecipe, inputs: Tensor) -> PackedExpert:
    """The expert of float matrices [out, in], on any device; inputs [n, D] are the calibration tokens that it saw.

    GPTQ reads the last matrix's inputs from the hidden layer of the already quantized first matrices. With fewer than
    `tokens_needed` tokens it is replaced by round to nearest, as the result's `quantizer` says.
    """
    quantizer = "rtn" if how.quantizer == "gptq" and len(inputs) < tokens_needed(matrices) else how.quantizer
    kept = torch.tensor(how.float_columns, dtype=torch.int32, device=inputs.device) if how.float_columns else None
    to_integers = _quantizer(
        how, quantizer, inputs if kept is None else inputs[:, other_columns(kept, inputs.shape[1])]
    )
    found = {name: _weight(matrices[name], how, to_integers, kept) for name in kind.first}
    if quantizer == "gptq":
        quantized = {name: weight.dequantize() for name, weight in found.items()}
        to_integers = _quantizer(how, quantizer, kind.hidden({**matrices, **quantized}, inputs.float()))
    found[kind.last] = _weight(matrices[kind.last], how, to_integers, None)
    return PackedExpert({name: found[name] for name in matrices}, quantizer, len(inputs))


@torch.no_grad()
def quantize_together(
    kind: Expert, experts: Sequence[Matrices], how: ExpertRecipe, inputs: Sequence[Tensor]
) -> list[PackedExpert]:
    """`quantize_expert` of experts with matrices of the same shapes and the calibration tokens [n, D] of each: one call
    for all, which a GPU finishes nearly as soon as a single expert's. For what `goes_together`."""
    found: dict[str, list[PackedWeight]] = {}

    def hidden(i: int) -> Tensor:
        quantized = {name: found[name][i].dequantize() for name in kind.first}
        return kind.hidden({**experts[i], **quantized}, inputs[i].float())

    solver = None
    for name in (*kind.first, kind.last):
        if how.quantizer == "gptq" and name in (kind.first[0], kind.last):
            reads = inputs if name != kind.last else [hidden(i) for i in range(len(experts))]
            solver = gptq.Solver(torch.stack([gptq.hessian(x) for x in reads]), how.group_size)
        weights = torch.stack([matrices[name] for matrices in experts])
        if solver is None:
            all_rows = _quantizer(how, how.quantizer, inputs[0])(weights.flatten(0, 1))
        else:
            all_rows = solver.quantize(weights, how.bits)
        found[name] = [PackedWeight(PackedMatrix.of(one)) for one in all_rows.split(len(experts))]
    return [
        PackedExpert({name: found[name][i] for name in matrices}, how.quantizer, len(inputs[i]))
        for i, matrices in enumerate(experts)
    ]


def goes_together(how: ExpertRecipe, tokens: int, matrices: Matrices) -> bool:
    """Whether an expert that saw so many calibration tokens may be one of `quantize_together`."""
    enough = how.quantizer != "gptq" or tokens >= tokens_needed(matrices)
    return enough and not how.rank and not how.float_columns


def tokens_needed(matrices: Matrices) -> int:
    """Calibration tokens below which GPTQ is not used: as many as the widest matrix has columns, and `MIN_TOKENS`.

    With fewer the Hessian is singular. For matrices of 64 columns, GPTQ's error on other text is 1.4, 1.2, 0.9 and 0.6
    times rounding's at 0.5, 1, 2 and 4 tokens a column (results/quantizers.md).
    """
    return max(MIN_TOKENS, *(weights.shape[1] for weights in matrices.values()))


def expert_bytes(kind: Expert, shapes: Mapping[str, tuple[int, int]], how: ExpertRecipe) -> int:
    """`PackedExpert.bytes` of an expert with matrices of these shapes [out, in], without quantizing it."""
    total = 0
    for name, (rows, all_columns) in shapes.items():
        kept = len(how.float_columns) if name in kind.first else 0
        total += kept * (4 + 2 * rows)  # its number, and float16
        columns = all_columns - kept
        total += packed_bytes(rows, columns, how.bits, group_columns(columns, how.group_size), zero=True)
        rank = min(how.rank, rows, columns)
        for side in (rows, columns) if rank else ():
            group = group_columns(side, COMPENSATOR_GROUP)
            total += packed_bytes(rank, side, how.compensator_bits, group, zero=False)
    return total


def fallen_back(recipe: Recipe, experts: Mapping[ExpertId, PackedExpert]) -> tuple[ExpertId, ...]:
    """Experts that saw too few calibration tokens for the recipe's quantizer and were rounded to nearest."""
    return tuple(identity for identity, expert in experts.items() if expert.quantizer != recipe.quantizer)


def _weight(
    weights: Tensor, how: ExpertRecipe, to_integers: Callable[[Tensor], Quantized], columns: Tensor | None
) -> PackedWeight:
    kept = None
    if columns is not None:
        kept = weights[:, columns.long()].half()
        weights = weights[:, other_columns(columns, weights.shape[1])]
    if not how.rank:
        return PackedWeight(PackedMatrix.of(to_integers(weights)), columns=columns, kept=kept)
    u, v = compensate(weights, how.rank, to_integers)
    stored = partial(rtn.quantize_symmetric, bits=how.compensator_bits, group_size=COMPENSATOR_GROUP)
    qu, qv = stored(u.T), stored(v)
    rest = weights.float() - qu.dequantize().T @ qv.dequantize()  # the integers also make up for the compensators' own
    matrix = PackedMatrix.of(to_integers(rest))
    return PackedWeight(matrix, PackedMatrix.of(qu), PackedMatrix.of(qv), columns, kept)


def _quantizer(how: ExpertRecipe, quantizer: Quantizer, inputs: Tensor) -> Callable[[Tensor], Quantized]:
    """How matrices that read these inputs [n, K] become integers."""
    if quantizer == "gptq":
        solver = gptq.Solver(gptq.hessian(inputs)[None], how.group_size)
        return lambda weights: solver.quantize(weights[None], how.bits)
    if quantizer == "hqq":
        return partial(hqq.quantize, bits=how.bits, group_size=how.group_size)
    return partial(rtn.quantize, bits=how.bits, group_size=how.group_size)
