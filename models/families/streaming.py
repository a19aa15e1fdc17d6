"""Quantizing a checkpoint that is larger than memory: one layer's weights at a time.

Round to nearest and HQQ need weights alone. GPTQ needs what reaches each expert, so the calibration text goes through
the network once, layer by layer: a layer is loaded, its experts are quantized for what reaches them (without running
them), its outputs are computed with the quantized experts, and it is let go. So each layer is quantized for the inputs
that it will have. Layers whose file exists are only run.
"""

import ctypes
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.expert_model import LayerTrace
from wattbit.models.families.family import Family
from wattbit.models.families.folder import QuantizedFolder
from wattbit.models.families.mixture import Mixture, joined, replace
from wattbit.models.families.open import empty_network
from wattbit.models.families.weights import Weights
from wattbit.models.packed import PackedExpert
from wattbit.models.quantizers.apply import ExpertRecipe, check_recipe, quantize_expert
from wattbit.plan import ExpertId
from wattbit.progress import Progress, silent
from wattbit.recipe import Recipe

BATCH_TOKENS = 4096  # that go through a layer together
FLOAT_BYTES = 2  # of a weight before


@dataclass(frozen=True)
class Kind:
    """What `quantize_expert` asks of an expert's kind."""

    family: Family
    mixture: Mixture

    @property
    def first(self) -> tuple[str, ...]:
        return self.family.first

    @property
    def last(self) -> str:
        return self.family.last

    def hidden(self, matrices: Mapping[str, Tensor], x: Tensor) -> Tensor:
        return self.mixture.hidden(matrices, x)


def quantize_checkpoint(
    checkpoint: Checkpoint,
    recipe: Recipe,
    out: Path,
    calibration: Tensor | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Write the quantized model to `out` (see `wattbit.models.families.folder`) and return what came of it.

    calibration: contexts [n, S]; needed by GPTQ, else not read. Raises WattbitError for a recipe of another model
    and for weights that cannot be quantized; a folder without any finished layer is then removed.
    """
    if recipe.quantizer != "gptq":
        calibration = None
    elif calibration is None:
        raise WattbitError("GPTQ needs calibration text; give some, or take round to nearest or HQQ")
    stream = _Stream(checkpoint, recipe, device, progress)
    text = None if calibration is None else hashlib.sha256(calibration.cpu().long().numpy().tobytes()).hexdigest()
    folder = QuantizedFolder.begin(out, checkpoint, recipe, {"calibration": text})
    if (done := folder.result) is not None:
        return done
    try:
        folder.copy_rest(checkpoint, progress)
        if calibration is None:
            stream.alone(folder)
        else:
            stream.through(folder, calibration)
    except WattbitError:
        folder.abandon()
        raise
    result = stream.result(folder)
    folder.finish(result)
    return result


class _Stream:
    """layers: their names. numbers: which mixture layer each is, for those that are."""

    def __init__(self, checkpoint: Checkpoint, recipe: Recipe, device: str, progress: Progress) -> None:
        self.family, self.network = empty_network(checkpoint)
        self.weights = Weights(self.network, partial(self.family.read, checkpoint), device)
        self.recipe, self.device, self.progress = recipe, device, progress
        self.layers = self.family.layers(self.network)
        self.mixtures = find_mixtures(self.family, self.network)
        self.numbers = {name: i for i, name in enumerate(self.mixtures)}
        columns = next(iter(self.mixtures.values())).matrices(0)[self.family.first[0]].shape[1]
        check_recipe(recipe, experts_of(self.mixtures), columns)
        self.weights.check(partial(self.family.read, checkpoint.headers()))

    def alone(self, folder: QuantizedFolder) -> None:
        """Quantize experts whose calibration tokens do not matter."""
        for name, number in self.numbers.items():
            if not folder.has(number):
                self.weights.load(name)
                folder.write(number, self._quantize(name, None))
                self.weights.free(name)
            self.progress(f"layer {name}", number + 1, len(self.numbers))

    @torch.no_grad()
    def through(self, folder: QuantizedFolder, contexts: Tensor) -> None:
        """Quantize each layer's experts for what reaches them."""
        self.weights.load("", skip=self.layers)
        self.family.buffers(self.network, self.device)
        for number, name in enumerate(self.layers):
            layer = self.network.get_submodule(name)
            layer.forward = partial(self._pass, folder, number, name, layer.forward)
        self.family.run(self.network, contexts.long().to(self.device))

    def _pass(
        self, folder: QuantizedFolder, number: int, name: str, forward: Callable[..., Any], *call: Any, **named: Any
    ) -> Any:
        """In place of a layer's `forward` on all contexts: outputs with the layer's experts quantized."""
        self.weights.load(name)
        if name in self.mixtures:
            self._experts(folder, name, lambda: [forward(*c, **n) for c, n in _batches(call, named)])
        outputs = [forward(*c, **n) for c, n in _batches(call, named)]
        self.weights.free(name)
        self.progress(f"layer {name}", number + 1, len(self.layers))
        return _joined(outputs)

    def _experts(self, folder: QuantizedFolder, name: str, run: Callable[[], Any]) -> None:
        """Put quantized experts in place of a loaded layer's. run: passes all contexts through the layer."""
        number = self.numbers[name]
        if not folder.has(number):
            folder.write(number, self._quantize(name, collect(self.mixtures[name], run)))
        for expert, packed in folder.read(number, self.device).items():
            replace(self.mixtures[name], expert.expert, packed.dequantize())

    def _quantize(self, name: str, trace: LayerTrace | None) -> dict[ExpertId, PackedExpert]:
        mixture, found = self.mixtures[name], {}
        for e in range(mixture.count):
            matrices = mixture.matrices(e)
            if trace is None:
                inputs = next(iter(matrices.values())).new_empty(0, matrices[self.family.first[0]].shape[1])
            else:
                inputs = trace.inputs[trace.rows(e)[0]]
            expert = ExpertId(self.numbers[name], e)
            how = ExpertRecipe.of(self.recipe, expert)
            try:
                found[expert] = quantize_expert(Kind(self.family, mixture), matrices, how, inputs)
            except WattbitError as error:
                raise WattbitError(f"{expert} of the model: {error}") from None
            give_back()
        return found

    def result(self, folder: QuantizedFolder) -> dict[str, Any]:
        """Bytes as stored, and which experts fell back to round to nearest."""
        stored, weights, fallen = 0, 0, []
        for number in self.numbers.values():
            for expert, packed in folder.read(number).items():
                stored += packed.bytes
                weights += sum(matrix.numel() for matrix in self._empty(expert))
                if packed.quantizer != self.recipe.quantizer:
                    fallen.append(f"{expert} ({packed.tokens} tokens)")
        return {
            "experts": sum(mixture.count for mixture in self.mixtures.values()),
            "expert_bytes": stored,
            "float_expert_bytes": weights * FLOAT_BYTES,
            "mean_bits": self.recipe.allocation.mean_bits,
            "rounded_to_nearest": fallen,
        }

    def _empty(self, expert: ExpertId) -> Iterator[Tensor]:
        name = list(self.numbers)[expert.layer]
        yield from self.mixtures[name].matrices(expert.expert).values()


def give_back() -> None:
    """Return freed memory to the system. glibc keeps blocks of up to 32 MB, some 100 MB an expert of OLMoE's size."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def find_mixtures(family: Family, network: Any) -> dict[str, Mixture]:
    """Mixture layers by name, in the order that tokens pass them."""
    found = ((name, family.mixture(network.get_submodule(name))) for name in family.layers(network))
    return {name: mixture for name, mixture in found if mixture is not None}


def experts_of(mixtures: Mapping[str, Mixture]) -> tuple[ExpertId, ...]:
    return tuple(ExpertId(i, e) for i, mixture in enumerate(mixtures.values()) for e in range(mixture.count))


def checkpoint_experts(checkpoint: Checkpoint) -> tuple[ExpertId, ...]:
    """The experts that a checkpoint's configuration makes, without reading weights."""
    return experts_of(find_mixtures(*empty_network(checkpoint)))


def collect(mixture: Mixture, run: Callable[[], Any]) -> LayerTrace:
    """What a mixture's experts are called with while `run` runs; they answer zeros and cost nothing."""
    found: list[LayerTrace] = []

    def record(*call: Any) -> Tensor:
        found.append(mixture.routed(call))
        return torch.zeros_like(call[0])

    experts: Any = mixture.experts
    experts.forward = record
    try:
        run()
    finally:
        del experts.forward
    return joined(found)


def _batches(call: tuple[Any, ...], named: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """A layer's arguments for some of the contexts at a time. The first is the stream [n, S, D]; tensors that do not
    begin with n are of all contexts."""
    count, length = call[0].shape[:2]
    step = max(1, BATCH_TOKENS // length)
    for start in range(0, count, step):

        def part(value: Any, start: int = start) -> Any:
            if isinstance(value, tuple):
                return tuple(part(v, start) for v in value)
            whole = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
            return value[start : start + step] if whole else value

        yield part(call), {name: part(value) for name, value in named.items()}


def _joined(outputs: list[Any]) -> Any:
    """A layer's output of those for parts of the contexts; what follows the stream in a tuple is of all contexts."""
    if isinstance(outputs[0], tuple):
        return (torch.cat([output[0] for output in outputs]), *outputs[0][1:])
    return torch.cat(outputs)
