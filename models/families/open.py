"""Opening a checkpoint of a known family, or a folder that `wattbit quantize` wrote."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.models.checkpoint import CONFIG, Checkpoint
from wattbit.models.families.adapter import FamilyModel
from wattbit.models.families.deepseek_moe import DEEPSEEK_MOE, DEEPSEEK_MOE_16B
from wattbit.models.families.family import Family
from wattbit.models.families.folder import EXPERTS, QuantizedFolder, is_quantized
from wattbit.models.families.mixtral import MIXTRAL
from wattbit.models.families.olmoe import OLMOE
from wattbit.models.families.qwen_moe import QWEN_MOE
from wattbit.models.families.switch import SWITCH
from wattbit.models.families.weights import Weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FAMILIES: tuple[Family, ...] = (MIXTRAL, SWITCH, OLMOE, QWEN_MOE, DEEPSEEK_MOE, DEEPSEEK_MOE_16B)
BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.classes}
BAD_CONFIG = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StrictDataclassError)
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")  # in a configuration


def family_of(checkpoint: Checkpoint) -> Family:
    """Raises WattbitError for an architecture that is not known, has no experts, or is quantized already."""
    config, model_type = checkpoint.config, checkpoint.config.get("model_type")
    if not isinstance(model_type, str) or model_type not in BY_TYPE:
        if not any(config.get(name) for name in EXPERT_COUNTS):
            raise WattbitError(f"{checkpoint.folder} ({model_type}) has no MoE layers; wattbit quantizes experts")
        raise WattbitError(
            f"{checkpoint.folder} is a {model_type}, which wattbit does not know; it knows {', '.join(sorted(BY_TYPE))}"
        )
    if about := config.get("quantization_config"):
        method = about.get("quant_method") if isinstance(about, dict) else about
        raise WattbitError(f"{checkpoint.folder} is quantized already ({method}); give its 16-bit weights")
    return BY_TYPE[model_type]


def empty_network(checkpoint: Checkpoint) -> tuple[Family, Any]:
    """The family and a network without weights; WattbitError where no layer has experts."""
    family = family_of(checkpoint)
    try:
        network: Any = family.network(family.config(checkpoint), checkpoint.config["model_type"])
    except BAD_CONFIG as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise WattbitError(f"{checkpoint.folder / CONFIG} makes no network ({reason}); download it again") from None
    if all(family.mixture(network.get_submodule(name)) is None for name in family.layers(network)):
        raise WattbitError(f"{checkpoint.folder} has no MoE layers: its {CONFIG} makes all of them dense")
    return family, network


def open_network(source: str | Path, device: str = "cpu") -> FamilyModel:
    """The model of a checkpoint folder, a hub id, or a folder that `wattbit quantize` wrote, in its own data type."""
    if is_quantized(source):
        return _open_quantized(QuantizedFolder.open(Path(source)), device)
    return load_network(Checkpoint.open(source), device)


def load_network(checkpoint: Checkpoint, device: str = "cpu") -> FamilyModel:
    family, network = empty_network(checkpoint)
    Weights(network, partial(family.read, checkpoint), device).load("")
    family.buffers(network, device)
    return FamilyModel(family, network, checkpoint.folder)


def _open_quantized(folder: QuantizedFolder, device: str) -> FamilyModel:
    checkpoint = folder.checkpoint()
    family, network = empty_network(checkpoint)

    def read(names: Sequence[str], shape: tuple[int, ...]) -> Tensor:
        return torch.empty(shape) if EXPERTS in names[0] else family.read(checkpoint, names, shape)

    Weights(network, read, device).load("")
    family.buffers(network, device)
    model = FamilyModel(family, network, checkpoint.folder)
    for layer in range(len(model.mixtures)):
        for expert, packed in folder.read(layer, device).items():
            model.replace(expert, packed.dequantize())
    return model


def open_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The folder's own; code that it may bring is not run."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if read_json(folder / CONFIG)["model_type"] == "deepseek":  # which transformers does not know
            return PreTrainedTokenizerFast.from_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise WattbitError(
            f"{folder} has no tokenizer that can be read ({reason}); copy tokenizer.json to it"
        ) from None


def open_model(source: str | Path, device: str = "cpu") -> tuple[FamilyModel, "PreTrainedTokenizerBase"]:
    """Model (as `open_network`) and tokenizer."""
    model = open_network(source, device)
    return model, open_tokenizer(model.folder)
