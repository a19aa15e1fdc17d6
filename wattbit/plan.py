"""Types that cross the folders. Standard library only, so that they also run on the board (Python 3.10 on its image).

Every type is frozen, goes to JSON and back (`from_json(x.to_json()) == x`) and has a digest that depends on its
content alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from wattbit.errors import WattbitError
from wattbit.files import digest_json

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

Provenance = Literal["measured", "simulated", "modelled"]
Engine = Literal["fpga", "arm", "host"]

WEIGHT_BITS = tuple(range(2, 9))
ACT_BITS = (4, 8)


def _choice(name: str, value: object, allowed: Iterable[object]) -> None:
    options = tuple(allowed)
    if value not in options:
        raise WattbitError(f"{name} must be one of {', '.join(map(str, options))}, not {value}")


@dataclass(frozen=True, order=True)
class Precision:
    """Width of an expert's weights and of its activations in bits, printed `w4a8`."""

    weight_bits: int
    act_bits: int = 8

    def __post_init__(self) -> None:
        _choice("weight_bits", self.weight_bits, WEIGHT_BITS)
        _choice("act_bits", self.act_bits, ACT_BITS)

    def __str__(self) -> str:
        return f"w{self.weight_bits}a{self.act_bits}"

    @classmethod
    def parse(cls, text: str) -> Self:
        weight, separator, act = text.removeprefix("w").partition("a")
        if not (text.startswith("w") and separator and weight.isdigit() and act.isdigit()):
            raise WattbitError(f"a precision is written like w4a8, not {text!r}")
        return cls(int(weight), int(act))


@dataclass(frozen=True, order=True)
class ExpertId:
    """One expert: its MoE layer and its place in that layer, both from 0."""

    layer: int
    expert: int

    def __str__(self) -> str:
        return f"L{self.layer}E{self.expert}"

    @classmethod
    def parse(cls, text: str) -> Self:
        layer, separator, expert = text.removeprefix("L").partition("E")
        if not (text.startswith("L") and separator and layer.isdigit() and expert.isdigit()):
            raise WattbitError(f"an expert is written like L0E3, not {text!r}")
        return cls(int(layer), int(expert))


@dataclass(frozen=True)
class ExpertShape:
    """An expert MLP's widths: `d_model` in and out, `d_hidden` between."""

    d_model: int
    d_hidden: int

    @property
    def weights(self) -> int:
        return 2 * self.d_model * self.d_hidden


@dataclass(frozen=True)
class ExpertStats:
    """What calibration data says of one expert.

    frequency: share of routed (token, slot) pairs of its layer, sums to 1 over the layer.
    contribution: gate weight summed over its tokens, normalised over the layer.
    gradient_norm: L2 norm of the loss gradient over the expert's weights.
    router_change: change of the L2 norm of its router row in training (arXiv 2604.06515).
    max_variance: largest variance within a neuron's input weights (same source).
    kurtosis: excess kurtosis of the weights (arXiv 2504.02658).
    damage: divergence of the model's predictions from the float model's, KL(float || quantized) in nats a token, with
    this expert alone at a weight width in bits; what the loss is expected to rise by.
    tokens: tokens that it saw.
    """

    expert: ExpertId
    frequency: float
    contribution: float
    gradient_norm: float
    router_change: float
    max_variance: float
    kurtosis: float
    damage: tuple[tuple[int, float], ...]
    tokens: int

    def damage_at(self, weight_bits: int) -> float:
        for bits, rise in self.damage:
            if bits == weight_bits:
                return rise
        measured = ", ".join(str(bits) for bits, _ in self.damage)
        raise WattbitError(f"{self.expert} has damage measured at {measured} bits, not {weight_bits}; run stats again")

    def to_json(self) -> dict[str, Any]:
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        return record | {"expert": str(self.expert), "damage": {str(b): d for b, d in self.damage}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        damage = tuple(sorted((int(b), float(d)) for b, d in record["damage"].items()))
        return cls(**dict(record) | {"expert": ExpertId.parse(record["expert"]), "damage": damage})


@dataclass(frozen=True, order=True)
class Placement:
    """Where one expert runs and at which widths."""

    expert: ExpertId
    engine: Engine
    precision: Precision

    def __post_init__(self) -> None:
        _choice("engine", self.engine, get_args(Engine))


@dataclass(frozen=True)
class Allocation:
    """One placement for every expert of a model, ordered by expert."""

    placements: tuple[Placement, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "placements", tuple(sorted(self.placements)))
        twice = [e for e, n in Counter(p.expert for p in self.placements).items() if n > 1]
        if twice:
            raise WattbitError(f"{twice[0]} is placed more than once; give every expert one placement")
        if not self.placements:
            raise WattbitError("an allocation needs at least one expert, got none")

    @classmethod
    def of(cls, bits: Mapping[ExpertId, int], act_bits: int = 8, engine: Engine = "fpga") -> Self:
        """An allocation from weight widths, all on one engine with one activation width."""
        return cls(tuple(Placement(e, engine, Precision(b, act_bits)) for e, b in bits.items()))

    @cached_property
    def _precisions(self) -> dict[ExpertId, Precision]:
        return {p.expert: p.precision for p in self.placements}

    def precision(self, expert: ExpertId) -> Precision:
        if expert not in self._precisions:
            raise WattbitError(f"{expert} is not in the allocation; it belongs to another model")
        return self._precisions[expert]

    @property
    def classes(self) -> dict[Precision, tuple[ExpertId, ...]]:
        """The width classes in use, narrowest first, with the experts of each."""
        found: dict[Precision, list[ExpertId]] = {}
        for placement in self.placements:
            found.setdefault(placement.precision, []).append(placement.expert)
        return {precision: tuple(found[precision]) for precision in sorted(found)}

    @property
    def mean_bits(self) -> float:
        """Mean weight width; experts of one model have one shape, so it is also the mean over weights."""
        return sum(p.precision.weight_bits for p in self.placements) / len(self.placements)

    def to_json(self) -> dict[str, Any]:
        return {str(p.expert): {"engine": p.engine, "precision": str(p.precision)} for p in self.placements}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """Raises WattbitError for what `to_json` has not made."""
        try:
            return cls(
                tuple(
                    Placement(ExpertId.parse(expert), value["engine"], Precision.parse(value["precision"]))
                    for expert, value in record.items()
                )
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise WattbitError(
                f"it is no allocation ({type(error).__name__}: {error}); give one that wattbit wrote"
            ) from None

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())


@dataclass(frozen=True)
class Target:
    """A board, read from `board/targets/NAME.toml`. None where the board has no such thing.

    memory_ports: 64-bit AXI ports to DDR that its processor offers the logic.
    """

    name: str
    title: str
    arch: str
    core: str
    cores: int
    core_mhz: float
    ddr_bytes_per_s: float
    part: str | None = None
    clock_mhz: float | None = None
    lut: int = 0
    ff: int = 0
    dsp: int = 0
    bram18: int = 0
    memory_ports: int = 1
    rails: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"rails": list(self.rails)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}
        strange = sorted(set(record) - known)
        if strange:
            raise WattbitError(f"a target has no field {strange[0]!r}; the fields are {', '.join(sorted(known))}")
        missing = [name for name in ("name", "title", "arch", "core", "cores", "core_mhz") if name not in record]
        if missing:
            raise WattbitError(f"a target needs the field {missing[0]!r}; add it to the board's TOML")
        return cls(**dict(record) | {"rails": tuple(record.get("rails", ()))})


@dataclass(frozen=True)
class Workload:
    """How much a meter shall price: tokens through every MoE layer, each to `top_k` experts.

    frequency: expected share of its layer's (token, slot) pairs for each expert.
    batch: tokens that go through a layer together.
    """

    tokens: int
    top_k: int
    frequency: tuple[tuple[ExpertId, float], ...]
    batch: int = 256


@dataclass(frozen=True)
class Cost:
    """The price of a workload; `energy_j` is None where nothing measured or modelled it."""

    latency_s: float
    energy_j: float | None
    memory_bytes: int
    provenance: Provenance

    def __post_init__(self) -> None:
        _choice("provenance", self.provenance, get_args(Provenance))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(**record)


class Meter(Protocol):
    """Prices an allocation. The policy sees nothing else of the hardware."""

    def cost(self, allocation: Allocation, workload: Workload) -> Cost: ...


class Learner(Protocol):
    """A trained model as the policy sees it: it can be priced in perplexity, adapted and put back."""

    def perplexity(self, allocation: Allocation | None) -> float:
        """Validation perplexity with every expert at its widths; None is the float model."""
        ...

    def finetune(self, allocation: Allocation, steps: int, seed: int) -> None:
        """Adapt the weights by quantization-aware training at these widths; later calls go on from there."""
        ...

    def finetune_over(self, allocations: Sequence[Allocation], steps: int, seed: int) -> None:
        """The same with the next of several allocations at each step, so that the weights serve all of them."""
        ...

    def stats(self, weight_bits: tuple[int, ...]) -> tuple[ExpertStats, ...]:
        """Statistics of every expert on calibration text, with the damage at each width."""
        ...

    def save(self, path: Path) -> None:
        """Write all weights as safetensors, atomically."""
        ...

    def load(self, path: Path) -> None:
        """Take the weights of a file that `save` wrote."""
        ...


@dataclass(frozen=True)
class PowerSample:
    """One reading of a rail: the midpoint of the read on the monotonic clock, and watts."""

    time_s: float
    power_w: float


@dataclass(frozen=True)
class Window:
    """One interval on the monotonic clock, in seconds, in which the board was idle or active."""

    kind: Literal["idle", "active"]
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Measurement:
    """What a board's agent read: raw samples and what happened when. Never an estimate.

    rail: what the sensor sees, in the board's own words ("12V", "PSINT", "socket").
    provenance: `measured` on a physical sensor, `simulated` on a virtual one.
    cycles: accelerator clock cycles of the active windows, or None where no accelerator ran.
    """

    target: str
    allocation_digest: str
    rail: str
    provenance: Provenance
    samples: tuple[PowerSample, ...]
    windows: tuple[Window, ...]
    tokens: int
    cycles: int | None

    def __post_init__(self) -> None:
        _choice("provenance of a measurement", self.provenance, ("measured", "simulated"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "samples": [[s.time_s, s.power_w] for s in self.samples],
            "windows": [[w.kind, w.start_s, w.end_s] for w in self.windows],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        samples = tuple(PowerSample(float(t), float(p)) for t, p in record["samples"])
        windows = tuple(Window(k, float(a), float(b)) for k, a, b in record["windows"])
        return cls(**dict(record) | {"samples": samples, "windows": windows})
