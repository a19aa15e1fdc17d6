"""How one model is quantized, and what a precision method may ask of a model: the border between methods and models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, isnan
from operator import index
from typing import Any, Literal, Protocol, Self, get_args

from wattbit.errors import WattbitError
from wattbit.plan import Allocation, ExpertId, ExpertStats

Quantizer = Literal["rtn", "gptq", "hqq"]
QUANTIZERS: tuple[Quantizer, ...] = get_args(Quantizer)


@dataclass(frozen=True)
class Pruning:
    """Experts left out at run time (ODP, arXiv 2410.06270): a token drops its second expert where that one's gate is
    below `ratio[layer]` of the first's, unless it is among the `protected` share of tokens that matter most."""

    ratio: tuple[float, ...]
    protected: float = 0.02

    def __post_init__(self) -> None:
        if any(isnan(ratio) for ratio in self.ratio):
            raise WattbitError(f"the gate ratios of pruning must be numbers, not {list(self.ratio)}")
        if not 0 <= self.protected <= 1:
            raise WattbitError(f"the protected share of tokens must be within 0..1, not {self.protected}")


@dataclass(frozen=True)
class Recipe:
    """What a method decides. Expert weights are quantized as it says; everything else of the model stays as it is.

    group_size: input columns that share a scale (and zero point); None: one scale an output row. A matrix whose columns
    it does not divide has a shorter last group.
    ranks: rank of each expert's low-rank compensators, those without an entry have none; compensator_bits: their width.
    float_columns: input columns of an expert's first matrices that are kept in float16.
    """

    method: str
    allocation: Allocation
    quantizer: Quantizer = "rtn"
    group_size: int | None = None
    ranks: Mapping[ExpertId, int] = field(default_factory=dict)
    compensator_bits: int = 3
    float_columns: Mapping[ExpertId, tuple[int, ...]] = field(default_factory=dict)
    pruning: Pruning | None = None

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise WattbitError(f"a quantizer is one of {', '.join(QUANTIZERS)}, not {self.quantizer!r}")
        for name, value in (("group_size", self.group_size or 1), ("compensator_bits", self.compensator_bits)):
            if type(value) is not int:
                raise WattbitError(f"{name} must be a whole number, not {value!r}")
        if self.group_size is not None and self.group_size < 1:
            raise WattbitError(f"group_size must be at least 1 or None, not {self.group_size}")
        if not 2 <= self.compensator_bits <= 8:
            raise WattbitError(f"compensator_bits must be within 2..8, not {self.compensator_bits}")
        for expert, rank in self.ranks.items():
            if rank < 0:
                raise WattbitError(f"the rank of {expert}'s compensators must be at least 0, not {rank}")
        for expert, columns in self.float_columns.items():
            if len(set(columns)) < len(columns) or min(columns, default=0) < 0:
                raise WattbitError(f"float_columns of {expert} must be different and at least 0, not {list(columns)}")

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "allocation": self.allocation.to_json(),
            "quantizer": self.quantizer,
            "group_size": self.group_size,
            "ranks": {str(expert): rank for expert, rank in self.ranks.items()},
            "compensator_bits": self.compensator_bits,
            "float_columns": {str(expert): list(columns) for expert, columns in self.float_columns.items()},
            "pruning": None
            if self.pruning is None
            else {"ratio": list(self.pruning.ratio), "protected": self.pruning.protected},
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises WattbitError for what `to_json` has not made."""
        try:
            pruning = record["pruning"]
            return cls(
                **dict(record)
                | {
                    "allocation": Allocation.from_json(record["allocation"]),
                    "ranks": {ExpertId.parse(e): index(rank) for e, rank in record["ranks"].items()},
                    "float_columns": {
                        ExpertId.parse(e): tuple(map(index, c)) for e, c in record["float_columns"].items()
                    },
                    "pruning": pruning and Pruning(tuple(map(float, pruning["ratio"])), float(pruning["protected"])),
                }
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise WattbitError(
                f"it is no recipe ({type(error).__name__}: {error}); give one that wattbit wrote"
            ) from None


@dataclass(frozen=True)
class Budget:
    """What a method may spend, and on which widths. mean_bits: greatest mean weight width of the experts."""

    mean_bits: float
    weight_bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    act_bits: int = 8
    group_size: int | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.mean_bits):
            raise WattbitError(f"a budget is a number of bits, not {self.mean_bits}")
        if self.mean_bits < min(self.weight_bits):
            raise WattbitError(
                f"a budget of {self.mean_bits} bits is below the narrowest width, {min(self.weight_bits)}; raise it"
            )


class Subject(Protocol):
    """A model with calibration text, as a method sees it. Everything is measured on that text, never on test text."""

    @property
    def experts(self) -> tuple[ExpertId, ...]:
        """All experts, ordered."""
        ...

    @property
    def top_k(self) -> int: ...

    def stats(self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn") -> tuple[ExpertStats, ...]:
        """As `wattbit.plan.Learner.stats`, with the damage (nats a token) at each width by a quantizer."""
        ...

    def reconstruction(
        self, weight_bits: tuple[int, ...], quantizer: Quantizer = "rtn"
    ) -> Mapping[ExpertId, Mapping[int, float]]:
        """Frobenius norm of the change of its layer's output with one expert alone at a width (arXiv 2410.06270)."""
        ...

    def gate_ratios(self) -> tuple[float, ...]:
        """Median over tokens of second gate / first gate, by layer; WattbitError where top_k is 1."""
        ...

    def channel_activity(self) -> Mapping[ExpertId, tuple[float, ...]]:
        """Gate-weighted mean |activation| times the L2 norm of the weights that read it, for each input column [D]."""
        ...

    def perplexity(self, recipe: Recipe | None) -> float:
        """Perplexity of the held-out text with the experts quantized so; None is the float model."""
        ...

    def memory_bytes(self, recipe: Recipe | None) -> int:
        """Bytes of the experts as packed: weights, scales, zero points, compensators; None: 16-bit float."""
        ...


class Method(Protocol):
    """One published (or our own) way to decide widths. A file of `wattbit.policy.methods` each."""

    @property
    def name(self) -> str: ...

    def decide(self, subject: Subject, budget: Budget, seed: int) -> Recipe:
        """Raises WattbitError for a budget that its widths cannot meet."""
        ...
