"""What quantizers and statistics need of a language model with experts: an adapter for each kind of network.

T tokens, K experts of each token, D model width. An expert is a dictionary of matrices [out, in] by name: "w1" and "w2"
(ReLU), or "gate", "up" and "down" (SwiGLU). `first` names those that read the expert's input, `last` the one that reads
the hidden layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from wattbit.plan import ExpertId
from wattbit.recipe import Pruning

Matrices = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class LayerTrace:
    """What calibration text did in one mixture layer. inputs [T, D], experts [T, K] int64, gates [T, K]."""

    inputs: Tensor
    experts: Tensor
    gates: Tensor

    def rows(self, expert: int) -> tuple[Tensor, Tensor]:
        """Tokens [n] that an expert of this layer saw and its gate [n] for each."""
        token, slot = (self.experts == expert).nonzero(as_tuple=True)
        return token, self.gates[token, slot]


class ExpertModel(Protocol):
    """A model in memory. `replace` changes an expert's weights in place; float weights are the caller's to keep."""

    @property
    def expert_ids(self) -> tuple[ExpertId, ...]: ...

    @property
    def top_k(self) -> int: ...

    @property
    def first(self) -> tuple[str, ...]: ...

    @property
    def last(self) -> str: ...

    def matrices(self, expert: ExpertId) -> dict[str, Tensor]:
        """The expert's current weights, copied."""
        ...

    def replace(self, expert: ExpertId, matrices: Matrices) -> None: ...

    def router(self, layer: int) -> Tensor:
        """Router weights [E, D]."""
        ...

    def initial_router_norms(self, layer: int) -> Sequence[float] | None:
        """L2 norm of each router row before training, where that is known."""
        ...

    def hidden(self, matrices: Matrices, x: Tensor) -> Tensor:
        """What the last matrix reads [n, H] for an expert's inputs x [n, D]."""
        ...

    def trace(self, contexts: Tensor) -> list[LayerTrace]:
        """One a mixture layer, on contexts [n, S]."""
        ...

    def gradient_norms(self, contexts: Tensor) -> dict[ExpertId, float]:
        """L2 norm of the gradient of the mean loss (nats a token) over each expert's weights, on contexts [n, S + 1].

        Zero for an expert that no token reaches.
        """
        ...

    def losses(self, contexts: Tensor, pruning: Pruning | None = None) -> Tensor:
        """Cross-entropy in nats [n, S] of the last S tokens of contexts [n, S + 1]."""
        ...

    def tail(self, layer: int, contexts: Tensor) -> Callable[[], Tensor]:
        """Logits [n, S, V] behind `losses` of these contexts, to be asked for while experts of this mixture layer or
        later ones change: what is before it is computed once, here."""
        ...
