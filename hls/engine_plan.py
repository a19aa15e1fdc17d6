"""What the planner decides: the engines of a design, their modelled resources and time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from wattbit.files import digest_json
from wattbit.hls.engine_class import EngineClass
from wattbit.hls.resources import Resources
from wattbit.plan import ExpertShape


@dataclass(frozen=True)
class EnginePlan:
    """Engines for an allocation on a part.

    classes: the engines; the experts of a precision may be shared by several copies.
    resources: modelled, of each engine. shell: of what is around them. fits: whether all of it does; `excess` says what
    is short and by how much. vectors: routed vectors of the workload at each engine, as expected from the routing
    frequencies. batch_cycles: expected clock cycles of a batch of tokens through all layers, one launch a layer.
    """

    part: str
    clock_mhz: float
    shape: ExpertShape
    classes: tuple[EngineClass, ...]
    resources: tuple[Resources, ...]
    shell: Resources
    vectors: tuple[float, ...]
    tokens: int
    batch: int
    batch_cycles: float
    excess: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return not self.excess

    @property
    def total(self) -> Resources:
        return sum(self.resources, self.shell)

    @property
    def cycles_per_vector(self) -> tuple[int, ...]:
        """Clock cycles a vector of each engine in steady state."""
        return tuple(spec.cycles_per_vector(self.shape) for spec in self.classes)

    @property
    def cycles(self) -> float:
        """Expected clock cycles of the workload."""
        return self.batch_cycles * self.tokens / self.batch

    @property
    def latency_s(self) -> float:
        return self.cycles / (self.clock_mhz * 1e6)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.latency_s

    def to_json(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "clock_mhz": self.clock_mhz,
            "d_model": self.shape.d_model,
            "d_hidden": self.shape.d_hidden,
            "classes": [spec.to_json() for spec in self.classes],
            "resources": [resources.to_json() for resources in self.resources],
            "shell": self.shell.to_json(),
            "vectors": list(self.vectors),
            "tokens": self.tokens,
            "batch": self.batch,
            "batch_cycles": self.batch_cycles,
            "excess": list(self.excess),
            "cycles_per_vector": list(self.cycles_per_vector),
            "fits": self.fits,
            "total": self.total.to_json(),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return cls(
            record["part"],
            record["clock_mhz"],
            ExpertShape(record["d_model"], record["d_hidden"]),
            tuple(EngineClass.from_json(spec) for spec in record["classes"]),
            tuple(Resources.from_json(resources) for resources in record["resources"]),
            Resources.from_json(record["shell"]),
            tuple(record["vectors"]),
            record["tokens"],
            record["batch"],
            record["batch_cycles"],
            tuple(record["excess"]),
        )

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())
