"""What a model is and how it is trained, as frozen values that go to JSON and back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from wattbit.errors import WattbitError
from wattbit.files import digest_json
from wattbit.plan import ExpertId, ExpertShape


class _Config:
    """JSON both ways and a digest, for the dataclasses below."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
        strange = sorted(set(record) - known)
        if strange:
            raise WattbitError(f"{cls.__name__} has no field {strange[0]!r}; the fields are {', '.join(sorted(known))}")
        return cls(**record)

    @property
    def digest(self) -> str:
        return digest_json(self.to_json())


@dataclass(frozen=True)
class ModelConfig(_Config):
    """A decoder-only transformer whose feed-forward layers are mixtures of experts."""

    vocab_size: int = 1024
    d_model: int = 64
    d_hidden: int = 128
    """Width of an expert's hidden layer."""
    layers: int = 2
    heads: int = 4
    experts: int = 16
    """Experts in each layer."""
    top_k: int = 2
    """Experts that each token is sent to."""
    context: int = 128
    """Tokens that a prediction may look back on."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                raise WattbitError(f"{field.name} must be at least 1, not {getattr(self, field.name)}")
        if self.d_model % (2 * self.heads):
            raise WattbitError(f"d_model must be a multiple of 2 * heads = {2 * self.heads}, not {self.d_model}")
        if self.top_k > self.experts:
            raise WattbitError(f"top_k must be at most experts = {self.experts}, not {self.top_k}")

    @property
    def expert_ids(self) -> tuple[ExpertId, ...]:
        return tuple(ExpertId(layer, expert) for layer in range(self.layers) for expert in range(self.experts))

    @property
    def shape(self) -> ExpertShape:
        return ExpertShape(self.d_model, self.d_hidden)


@dataclass(frozen=True)
class GatedConfig(_Config):
    """A decoder-only transformer with RMSNorm, grouped-query attention and SwiGLU experts; see wattbit.models.gated."""

    vocab_size: int
    d_model: int
    d_hidden: int
    layers: int
    heads: int
    kv_heads: int
    """Heads of keys and values, each shared by heads / kv_heads heads of queries."""
    head_width: int
    experts: int
    top_k: int
    context: int
    renormalize: bool = True
    """Whether the gates of the chosen experts sum to 1."""
    qk_norm: str = "none"
    """RMSNorm of queries and keys: none, over the whole vector, or over each head."""
    qkv_bias: bool = False
    shared_hidden: int = 0
    """Hidden width of an expert that sees every token, behind a sigmoid gate; 0 for none."""
    tied_head: bool = False
    """Whether the output layer shares the embedding's weights."""
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "d_hidden", "layers", "heads", "kv_heads", "experts", "top_k", "context"):
            if getattr(self, name) < 1:
                raise WattbitError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            raise WattbitError(f"heads must be a multiple of kv_heads = {self.kv_heads}, not {self.heads}")
        if self.head_width < 2 or self.head_width % 2:
            raise WattbitError(f"head_width must be even, not {self.head_width}")
        if self.top_k > self.experts:
            raise WattbitError(f"top_k must be at most experts = {self.experts}, not {self.top_k}")
        if self.qk_norm not in ("none", "whole", "head"):
            raise WattbitError(f"qk_norm must be none, whole or head, not {self.qk_norm!r}")

    @property
    def expert_ids(self) -> tuple[ExpertId, ...]:
        return tuple(ExpertId(layer, expert) for layer in range(self.layers) for expert in range(self.experts))


@dataclass(frozen=True)
class TrainConfig(_Config):
    """Float training. The step count is the budget, so that the result does not depend on the machine's speed."""

    steps: int = 1600
    batch: int = 16
    """Contexts in a step."""
    learning_rate: float = 1e-2
    warmup_steps: int = 50
    weight_decay: float = 0.05
    balance: float = 0.01
    """Weight of the load-balancing loss (Switch Transformer, arXiv 2101.03961)."""
    seed: int = 0
    threads: int = 2
    """Fixed, because the order of float32 sums depends on it."""
    device: str = "cpu"
    """cpu, cuda, or auto: cuda where there is one. Another device sums in another order."""
    bf16: bool = False
    """Whether products run in bfloat16 (autocast); weights, optimizer and losses are float32 in either case."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "threads"):
            if getattr(self, name) < 1:
                raise WattbitError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.device not in ("cpu", "cuda", "auto"):
            raise WattbitError(f"device must be cpu, cuda or auto, not {self.device!r}")


DEMO_MODEL = ModelConfig()
DEMO_TRAIN = TrainConfig()
