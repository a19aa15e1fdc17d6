"""What wattbit must know of a family of checkpoints: small data, and what differs.

Most are decoders whose layers are `model.layers.N`, with the mixture in `mlp`. On disk each expert's matrix is a tensor
of its own; transformers 5 keeps the experts of a layer in two parameters. `read` builds these, expert by expert.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn

from wattbit.errors import WattbitError
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.families.mixture import FusedMixture, Mixture
from wattbit.models.network import token_losses

FUSED = {".experts.gate_up_proj": ("gate", "up"), ".experts.down_proj": ("down",)}


@dataclass(frozen=True)
class Family:
    """A decoder-only family; subclasses override what differs."""

    first: ClassVar[tuple[str, ...]] = ("gate", "up")
    last: ClassVar[str] = "down"

    classes: Mapping[str, str]
    """transformers class of each `model_type`."""
    expert_names: Mapping[str, str] = field(
        default_factory=lambda: {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    )
    """An expert's matrices as checkpoints call them."""
    renamed: tuple[tuple[str, str], ...] = ()
    """Parts of a parameter's name that are called otherwise in checkpoints."""

    def config(self, checkpoint: Checkpoint) -> Any:
        """The configuration of transformers' class."""
        return transformers.AutoConfig.from_pretrained(checkpoint.folder, trust_remote_code=False)

    def network(self, config: Any, model_type: str) -> nn.Module:
        """The network without weights: its parameters are on the meta device."""
        config._experts_implementation = "eager"  # an expert's output depends on its own rows alone
        with torch.device("meta"):
            network: nn.Module = getattr(transformers, self.classes[model_type])(config)
        return network.eval().requires_grad_(False)

    def layers(self, network: nn.Module) -> list[str]:
        """Names of the layers, in the order that tokens pass them."""
        return [f"model.layers.{i}" for i, _ in enumerate(network.get_submodule("model.layers").children())]

    def block(self, layer: nn.Module) -> nn.Module:
        """A layer's feed-forward part."""
        return layer.get_submodule("mlp")

    def mixture(self, layer: nn.Module) -> Mixture | None:
        """A layer's mixture; None in a dense layer."""
        block = self.block(layer)
        return FusedMixture(block) if hasattr(block, "experts") else None

    def attention(self, layer: nn.Module) -> nn.Module:
        return layer.get_submodule("self_attn")

    def top_k(self, config: Any) -> int:
        return int(config.num_experts_per_tok)

    def losses(self, network: Any, contexts: Tensor) -> Tensor:
        """Cross-entropy in nats [n, S] of the last S tokens of contexts [n, S + 1], each from those before it."""
        logits = network(contexts[:, :-1], use_cache=False).logits
        return token_losses(logits, contexts[:, 1:])

    def tail(self, network: Any, depth: int, contexts: Tensor) -> Callable[[], Tensor]:
        """Logits [n, S, V] behind `losses`, to be asked for again; the layers before `depth` are computed once."""
        model = network.get_submodule("model")
        entered: list[Tensor] = []
        hook = model.layers[depth].register_forward_pre_hook(
            lambda _, args, named: entered.append(args[0] if args else named["hidden_states"]), with_kwargs=True
        )
        try:
            self.run(network, contexts[:, :-1])
        finally:
            hook.remove()

        def logits() -> Tensor:
            whole = model.layers
            model.layers = nn.ModuleList([*[_Passed()] * depth, *whole[depth:]])  # each keeps its number
            try:
                found: Tensor = network(inputs_embeds=entered[0], use_cache=False).logits
            finally:
                model.layers = whole
            return found

        return logits

    def run(self, network: Any, contexts: Tensor) -> None:
        """Send contexts [n, S] through all layers, and through no more than the head needs."""
        network.get_submodule("model")(contexts, use_cache=False)

    def buffers(self, network: Any, device: str) -> None:
        """Make what checkpoints do not hold because it follows from the configuration."""
        network.model.rotary_emb = type(network.model.rotary_emb)(network.config).to(device)

    def stored(self, name: str) -> str:
        """A parameter's name in checkpoints."""
        for ours, theirs in self.renamed:
            name = name.replace(ours, theirs)
        return name

    def read(self, checkpoint: Checkpoint, names: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        """A parameter of the network, which has those names (several where it is shared).

        It may also be stored under one of these, as `save_pretrained(save_original_format=False)` does.
        """
        stored = [self.stored(name) for name in names]
        for name in (*stored, *names):
            if name in checkpoint:
                return checkpoint.read(name, shape)
        for suffix, parts in FUSED.items():
            if stored[0].endswith(suffix):
                return self._fuse(checkpoint, stored[0].removesuffix(suffix), parts, shape)
        return checkpoint.read(stored[0], shape)

    def expert(self, checkpoint: Checkpoint, layer: str, expert: int, part: str, shape: tuple[int, ...]) -> Tensor:
        """One matrix of an expert, as it is stored."""
        block = self.stored(f"{layer}.mlp.")
        return checkpoint.read(f"{block}experts.{expert}.{self.expert_names[part]}.weight", shape)

    def _fuse(self, checkpoint: Checkpoint, block: str, parts: tuple[str, ...], shape: tuple[int, ...]) -> Tensor:
        """The parameter [E, rows, columns] whose rows are the experts' matrices."""
        one = (shape[1] // len(parts), shape[2])
        fused: Tensor | None = None
        for expert in range(shape[0]):
            for i, part in enumerate(parts):
                name = f"{block}.experts.{expert}.{self.expert_names[part]}.weight"
                matrix = checkpoint.read(name, one)
                if fused is None:
                    fused = torch.empty(shape, dtype=matrix.dtype, device=matrix.device)
                fused[expert, i * one[0] : (i + 1) * one[0]] = matrix
        if fused is None:
            raise WattbitError(f"{checkpoint.folder} has no MoE layers: {block} has 0 experts; give a model with some")
        return fused


class _Passed(nn.Module):
    """A layer that was computed before."""

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states
