"""A checkpoint is quantized layer by layer into a folder that gives the same floats back, interrupted or not."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.hf_support import FAMILIES, checkpoint, contexts, mixed_recipe, transformers_model
from wattbit.errors import WattbitError
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.families import streaming
from wattbit.models.families.adapter import FamilyModel
from wattbit.models.families.folder import QuantizedFolder
from wattbit.models.families.open import open_network
from wattbit.models.families.streaming import quantize_checkpoint
from wattbit.models.families.weights import Weights
from wattbit.models.packed import PackedExpert
from wattbit.models.quantizers.apply import MIN_TOKENS, ExpertRecipe, quantize_expert
from wattbit.plan import Allocation, ExpertId
from wattbit.recipe import Recipe

CALIBRATION = contexts(40, 32, seed=2)


def perplexity(model: FamilyModel) -> float:
    return model.losses(contexts()).double().mean().exp().item()


def quantize_in_memory(model: FamilyModel, recipe: Recipe) -> dict[ExpertId, PackedExpert]:
    """Layer after layer, each on what reaches it from the quantized layers before."""
    found = {}
    for layer in range(len(model.mixtures)):
        trace = model.trace(CALIBRATION)[layer]
        for expert in [e for e in model.expert_ids if e.layer == layer]:
            inputs = trace.inputs[trace.rows(expert.expert)[0]]
            found[expert] = quantize_expert(model, model.matrices(expert), ExpertRecipe.of(recipe, expert), inputs)
            model.replace(expert, found[expert].dequantize())
    return found


GPTQ = ("deepseek_v2", "mixtral", "qwen2_moe", "switch_transformers")  # one of each way to be built
TRIPS = [*itertools.product(FAMILIES, ("rtn",)), *itertools.product(GPTQ, ("gptq",)), ("mixtral", "hqq")]


@pytest.mark.parametrize(("name", "quantizer"), TRIPS)
def test_perplexity_is_the_same_after_a_round_trip(name: str, quantizer: Any, tmp_path: Path) -> None:
    """Quantized in memory == streamed to a folder and loaded from it, float for float."""
    folder = checkpoint(name, tmp_path / "model")
    recipe = mixed_recipe(folder, quantizer)
    model = open_network(folder)
    before = perplexity(model)
    packed = quantize_in_memory(model, recipe)
    result = quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "out", CALIBRATION)
    loaded = open_network(tmp_path / "out")
    for expert in model.expert_ids:
        for key, matrix in model.matrices(expert).items():
            assert torch.equal(loaded.matrices(expert)[key], matrix)
    assert torch.equal(loaded.losses(contexts()), model.losses(contexts()))
    assert perplexity(loaded) == perplexity(model) != before
    assert result["expert_bytes"] == sum(expert.bytes for expert in packed.values())
    assert result["rounded_to_nearest"] == [
        f"{expert} ({found.tokens} tokens)" for expert, found in packed.items() if found.quantizer != quantizer
    ]


def test_half_precision_goes_there_and_back(tmp_path: Path) -> None:
    transformers_model("qwen3_moe").to(torch.bfloat16).save_pretrained(tmp_path / "model")
    recipe = mixed_recipe(tmp_path / "model", "gptq")
    model = open_network(tmp_path / "model")
    quantize_in_memory(model, recipe)
    quantize_checkpoint(Checkpoint.open(tmp_path / "model"), recipe, tmp_path / "out", CALIBRATION)
    loaded = open_network(tmp_path / "out")
    assert next(loaded.network.parameters()).dtype == torch.bfloat16
    assert torch.equal(loaded.losses(contexts()), model.losses(contexts()))


def test_the_folder_needs_nothing_else(tmp_path: Path) -> None:
    folder = checkpoint("qwen2_moe", tmp_path / "model")
    recipe = mixed_recipe(folder)
    quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "out")
    before = perplexity(open_network(tmp_path / "out"))
    folder.rename(tmp_path / "gone")
    assert perplexity(open_network(tmp_path / "out")) == before
    assert QuantizedFolder.open(tmp_path / "out").recipe.to_json() == recipe.to_json()
    stored = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert stored < sum(path.stat().st_size for path in (tmp_path / "gone").glob("*.safetensors"))


def test_bytes_are_what_widths_make_them(tmp_path: Path) -> None:
    """4 bits in groups of 32: half a byte a weight, and a scale and a zero point of 2 bytes for 32 of them."""
    folder = checkpoint("mixtral", tmp_path / "model")
    experts = open_network(folder).expert_ids
    recipe = Recipe("uniform", Allocation.of(dict.fromkeys(experts, 4), engine="arm"), "rtn", 32)
    result = quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "out")
    weights = len(experts) * 3 * 64 * 96
    assert result["expert_bytes"] == weights // 2 + weights // 32 * 4
    assert result["float_expert_bytes"] == weights * 2
    files = sum(path.stat().st_size for path in (tmp_path / "out").glob("experts-*.safetensors"))
    assert result["expert_bytes"] < files < 1.2 * result["expert_bytes"], "headers apart, that is the files' size"


@pytest.mark.parametrize("name", ["mixtral", "switch_transformers"])
def test_parts_of_the_calibration_text_add_up(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(name, tmp_path / "model")
    recipe = mixed_recipe(folder, "gptq")
    quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "whole", CALIBRATION)
    monkeypatch.setattr(streaming, "BATCH_TOKENS", 96)
    quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "parts", CALIBRATION)
    whole, parts = (open_network(tmp_path / part).losses(contexts()) for part in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0.05)  # a rounding may fall the other way
    assert (parts - whole).abs().median() < 1e-3


def test_experts_without_tokens_are_named_and_rounded(tmp_path: Path) -> None:
    folder = checkpoint("olmoe", tmp_path / "model")
    recipe = mixed_recipe(folder, "gptq")
    result = quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "few", contexts(1, 20))
    experts = QuantizedFolder(tmp_path / "few").read(0) | QuantizedFolder(tmp_path / "few").read(1)
    assert all(expert.tokens < MIN_TOKENS and expert.quantizer == "rtn" for expert in experts.values())
    assert result["rounded_to_nearest"] == [f"{e} ({packed.tokens} tokens)" for e, packed in experts.items()]
    rounded = quantize_checkpoint(Checkpoint.open(folder), mixed_recipe(folder), tmp_path / "rtn")
    assert rounded["rounded_to_nearest"] == []
    assert perplexity(open_network(tmp_path / "few")) == perplexity(open_network(tmp_path / "rtn"))


@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
@pytest.mark.parametrize("name", ["deepseek_v2", "switch_transformers"])
def test_one_layer_is_loaded_at_a_time(
    name: str, quantizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(name, tmp_path / "model")
    recipe = mixed_recipe(folder, quantizer)
    counts: list[int] = []
    load = Weights.load

    def counted(weights: Weights, prefix: str, skip: Any = ()) -> None:
        load(weights, prefix, skip)
        layers = (
            [weights.network.get_submodule(f"model.layers.{i}") for i in range(3)]
            if name != "switch_transformers"
            else [
                *weights.network.encoder.block,
                *weights.network.decoder.block,
            ]
        )
        counts.append(sum(any(not p.is_meta for p in layer.parameters()) for layer in layers))

    monkeypatch.setattr(Weights, "load", counted)
    quantize_checkpoint(Checkpoint.open(folder), recipe, tmp_path / "out", CALIBRATION)
    assert max(counts) == 1
    assert counts.count(1) >= 2


MEMORY = """
import sys
from pathlib import Path
import torch
from tests.hf_support import contexts, mixed_recipe
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.families import streaming
from wattbit.models.families.streaming import checkpoint_experts, quantize_checkpoint
from wattbit.plan import Allocation
from wattbit.recipe import Recipe

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

peak = 0
def measured(function):
    def run(*arguments):
        global peak
        found = function(*arguments)
        peak = max(peak, anonymous_bytes())
        return found
    return run

streaming.quantize_expert = measured(streaming.quantize_expert)
model = Checkpoint.open(sys.argv[1])
recipe = Recipe("uniform", Allocation.of(dict.fromkeys(checkpoint_experts(model), 4), engine="arm"), "gptq", 128)
before = anonymous_bytes()
quantize_checkpoint(model, recipe, Path(sys.argv[2]), contexts(2, 16))  # so few tokens that experts are rounded
print(peak - before)
"""


@pytest.mark.slow  # for a process of its own; test_one_layer_is_loaded_at_a_time holds the same by counting
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_peak_memory_is_of_layers_not_of_the_model(tmp_path: Path) -> None:
    """16 layers of 3 MB of experts each: loading, quantizing and running them takes the memory of a few."""
    folder = checkpoint(
        "mixtral",
        tmp_path / "model",
        num_hidden_layers=16,
        hidden_size=128,
        intermediate_size=512,
        num_key_value_heads=4,
    )
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    command = [sys.executable, "-c", MEMORY, str(folder), str(tmp_path / "out")]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < weights / 4


def interrupted_after(count: int, work: Callable[..., PackedExpert]) -> Callable[..., PackedExpert]:
    calls = itertools.count(1)

    def run(*arguments: Any) -> PackedExpert:
        if next(calls) > count:
            raise KeyboardInterrupt
        return work(*arguments)

    return run


@pytest.mark.parametrize(("name", "quantizer"), [("olmoe", "rtn"), ("switch_transformers", "gptq")])
def test_an_interrupted_run_goes_on(name: str, quantizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Checkpoint.open(checkpoint(name, tmp_path / "model"))
    recipe = mixed_recipe(model.folder, quantizer)
    quantize_checkpoint(model, recipe, tmp_path / "whole", CALIBRATION)
    first = open_network(model.folder).mixtures[0].count
    monkeypatch.setattr(streaming, "quantize_expert", interrupted_after(first + 2, quantize_expert))
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(model, recipe, tmp_path / "parts", CALIBRATION)
    done = sorted((tmp_path / "parts").glob("experts-*"))
    assert [path.name for path in done] == ["experts-00000.safetensors"], "what is half done leaves no file"
    with pytest.raises(WattbitError, match="is unfinished; run its `wattbit quantize` again"):
        open_network(tmp_path / "parts")
    rest = len(open_network(model.folder).expert_ids) - first
    monkeypatch.setattr(streaming, "quantize_expert", interrupted_after(rest, quantize_expert))
    before = done[0].stat().st_mtime_ns
    result = quantize_checkpoint(model, recipe, tmp_path / "parts", CALIBRATION)
    assert done[0].stat().st_mtime_ns == before
    for path in sorted((tmp_path / "whole").iterdir()):
        assert (tmp_path / "parts" / path.name).read_bytes() == path.read_bytes(), path.name
    monkeypatch.setattr(streaming, "quantize_expert", interrupted_after(0, quantize_expert))
    assert quantize_checkpoint(model, recipe, tmp_path / "parts", CALIBRATION) == result, "nothing is done twice"


def test_a_folder_of_something_else_is_kept(tmp_path: Path) -> None:
    model = Checkpoint.open(checkpoint("mixtral", tmp_path / "model"))
    recipe = mixed_recipe(model.folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(WattbitError, match="is not empty and holds no quantized model"):
        quantize_checkpoint(model, recipe, tmp_path / "full")
    quantize_checkpoint(model, recipe, tmp_path / "out")
    with pytest.raises(WattbitError, match="holds another quantization"):
        quantize_checkpoint(model, mixed_recipe(model.folder, "hqq"), tmp_path / "out")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "wattbit.json").write_text("[]")
    with pytest.raises(WattbitError, match="is of format None, not 'wattbit checkpoint 1'; quantize anew"):
        quantize_checkpoint(model, recipe, tmp_path / "strange")
    other = Checkpoint.open(checkpoint("mixtral", tmp_path / "other", initializer_range=0.2))
    with pytest.raises(WattbitError, match="holds another quantization"):
        quantize_checkpoint(other, recipe, tmp_path / "out")


def test_misshapen_weights_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Of the last layer, which is read last."""
    folder = checkpoint("mixtral", tmp_path / "model")
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    shard = Checkpoint.open(folder).files[name]
    tensors = load_file(shard)
    save_file(tensors | {name: tensors[name][1:].contiguous()}, shard)
    with pytest.raises(WattbitError, match=r"experts\.3\.w2\.weight of .* is of shape"):
        quantize_checkpoint(
            Checkpoint.open(folder), mixed_recipe(checkpoint("mixtral", tmp_path / "x")), tmp_path / "o"
        )
    assert not (tmp_path / "o").exists()


def test_a_recipe_of_another_model(tmp_path: Path) -> None:
    model = Checkpoint.open(checkpoint("mixtral", tmp_path / "model"))

    def recipe(experts: int) -> Recipe:
        ids = [ExpertId(layer, e) for layer in range(2) for e in range(experts)]
        return Recipe("uniform", Allocation.of(dict.fromkeys(ids, 4)))

    with pytest.raises(WattbitError, match="L0E4 is in the recipe, but not in the model of 8 experts"):
        quantize_checkpoint(model, recipe(5), tmp_path / "out")
    with pytest.raises(WattbitError, match="L0E3 is in the model, but not in the recipe"):
        quantize_checkpoint(model, recipe(3), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_gptq_without_text(tmp_path: Path) -> None:
    model = Checkpoint.open(checkpoint("mixtral", tmp_path / "model"))
    with pytest.raises(WattbitError, match="GPTQ needs calibration text"):
        quantize_checkpoint(model, mixed_recipe(model.folder, "gptq"), tmp_path / "out")


def test_a_missing_file_of_experts(tmp_path: Path) -> None:
    model = Checkpoint.open(checkpoint("mixtral", tmp_path / "model"))
    quantize_checkpoint(model, mixed_recipe(model.folder), tmp_path / "out")
    (tmp_path / "out" / "experts-00001.safetensors").unlink()
    with pytest.raises(WattbitError, match=r"experts-00001.safetensors does not exist"):
        open_network(tmp_path / "out")


def test_what_a_layer_is_given_is_cut_by_context() -> None:
    stream, mask = torch.arange(24.0).view(4, 3, 2), torch.ones(1, 1, 3, 3)
    position = (torch.zeros(1, 3, 2), torch.arange(4.0))

    def parts(tokens: int) -> list[tuple[Tensor, Tensor, tuple[Tensor, Tensor]]]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streaming, "BATCH_TOKENS", tokens)
            cut = streaming._batches((stream, mask), {"position": position, "cache": None})
            return [(*call, named["position"]) for call, named in cut]

    assert [len(x) for x, _, _ in parts(7)] == [2, 2]
    assert [len(x) for x, _, _ in parts(1)] == [1, 1, 1, 1]
    for x, same, (cos, own) in parts(7):
        assert same is mask and cos is position[0] and len(own) == len(x)
    assert torch.equal(torch.cat([x for x, _, _ in parts(7)]), stream)
