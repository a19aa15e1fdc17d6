"""What an engine is to be: its width class, its parallelism and the experts that share it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, ExpertShape, Precision

PARALLELISM = (1, 2, 4, 8)  # of what comes from and goes to the shell, whose beats have 64 bits
HIDDEN_PARALLELISM = (1, 2, 4, 8, 16, 32)  # of the hidden vector, inside an engine
SETS_MAX = 2**16 - 1  # the number of sets has 16 bits
SLOTS = 2  # experts that a streamed engine holds at a time: it computes with one while the other is loaded
DSP_PORT_BITS = {1: 25, 2: 27}  # the widest multiplier operand of DSP48E1 and DSP48E2
Home = Literal["chip", "stream"]
Products = Literal["dsp", "logic"]


def accumulator_bits(fan_in: int, input_max: int, weight_bits: int) -> int:
    """Bits of a signed sum of `fan_in` products of inputs of at most `input_max` and narrow-range weights."""
    return (fan_in * input_max * (2 ** (weight_bits - 1) - 1)).bit_length() + 1


def requant_lanes(pe: int, folds: int) -> int:
    """The fewest lanes of requantisation that keep up with `pe` sums every `folds` cycles: `pe` over a power of two."""
    lanes = pe
    while lanes % 2 == 0 and 2 * pe <= folds * lanes:
        lanes //= 2
    return lanes


@dataclass(frozen=True)
class EngineClass:
    """One engine: `experts` of one precision as its sets 0, 1, ..., on a datapath of the given parallelism.

    fc1 takes simd1 inputs and makes pe1 outputs a beat, fc2 simd2 and pe2. The hidden vector passes from one to the
    other without a width converter, hence pe1 == simd2. copy: 0, 1, ... among the engines of one precision.
    home: where the weights are, all on the chip, or in DDR, from which an expert is loaded into one of SLOTS slots.
    products: what multiplies, DSP slices or logic.
    """

    precision: Precision
    pe1: int
    simd1: int
    pe2: int
    simd2: int
    experts: tuple[ExpertId, ...]
    copy: int = 0
    home: Home = "chip"
    products: Products = "dsp"

    def __post_init__(self) -> None:
        for name, known in (("pe1", HIDDEN_PARALLELISM), ("simd1", PARALLELISM), ("pe2", PARALLELISM)):
            if getattr(self, name) not in known:
                raise WattbitError(f"{name} must be one of {known}, not {getattr(self, name)}")
        if self.pe1 != self.simd2:
            raise WattbitError(f"pe1 {self.pe1} must equal simd2 {self.simd2}: the hidden vector passes unconverted")
        if not 1 <= len(self.experts) <= SETS_MAX:
            raise WattbitError(f"an engine holds 1 to {SETS_MAX} experts, not {len(self.experts)}")
        if self.home not in get_args(Home):
            raise WattbitError(f"the home of weights must be one of {', '.join(get_args(Home))}, not {self.home}")
        if self.products not in get_args(Products):
            raise WattbitError(f"products must be one of {', '.join(get_args(Products))}, not {self.products}")

    @property
    def streamed(self) -> bool:
        return self.home == "stream"

    @property
    def name(self) -> str:
        """Name of the engine's module, for instance `engine_w4a8`, or `engine_w4a8_1` for its second copy."""
        return f"engine_{self.precision}" + (f"_{self.copy}" if self.copy else "")

    def cycles_per_vector(self, shape: ExpertShape) -> int:
        """Clock cycles a vector in steady state: those of the slower layer."""
        products = shape.d_model * shape.d_hidden
        return max(products // (self.pe1 * self.simd1), products // (self.pe2 * self.simd2))

    def requant_lanes(self, shape: ExpertShape) -> tuple[int, int]:
        """Lanes of requantisation of fc1 and fc2."""
        return (
            requant_lanes(self.pe1, shape.d_model // self.simd1),
            requant_lanes(self.pe2, shape.d_hidden // self.simd2),
        )

    def accumulators(self, shape: ExpertShape) -> tuple[int, int]:
        """Accumulator bits of fc1, whose inputs reach -2^(act_bits-1), and fc2, whose inputs are unsigned."""
        act_bits, weight_bits = self.precision.act_bits, self.precision.weight_bits
        return (
            accumulator_bits(shape.d_model, 2 ** (act_bits - 1), weight_bits),
            accumulator_bits(shape.d_hidden, 2**act_bits - 1, weight_bits),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "precision": str(self.precision),
            "pe1": self.pe1,
            "simd1": self.simd1,
            "pe2": self.pe2,
            "simd2": self.simd2,
            "experts": [str(expert) for expert in self.experts],
            "copy": self.copy,
            "home": self.home,
            "products": self.products,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        experts = tuple(ExpertId.parse(expert) for expert in record["experts"])
        return cls(**dict(record) | {"precision": Precision.parse(record["precision"]), "experts": experts})
