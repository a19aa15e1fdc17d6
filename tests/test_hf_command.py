"""`wattbit quantize` as users call it."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from tests.hf_support import checkpoint, mixed_recipe, save_tokenizer
from wattbit.cli import main
from wattbit.files import read_json, write_json
from wattbit.models.checkpoint import Checkpoint
from wattbit.models.decode import greedy
from wattbit.models.families.folder import QuantizedFolder
from wattbit.models.families.gated import gated_weights
from wattbit.models.families.open import open_model, open_tokenizer
from wattbit.models.families.text import first_contexts
from wattbit.models.gated import quantize as quantize_gated
from wattbit.tvm_schedules.model.runtime import Decoder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = checkpoint("mixtral", tmp_path / "model")
    save_tokenizer(folder)
    return folder


def run(*words: object) -> Result:
    return CliRunner().invoke(main, list(map(str, words)))


def quantize(*words: object) -> Result:
    return run("quantize", *words)


def test_one_width(model: Path, tmp_path: Path) -> None:
    result = quantize(model, "--bits", 3, "--group-size", 32, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "8 experts at 3.00 bits, 0.1 MB with scales and compensators, 0.3 MB as 16-bit float" in result.output
    network, tokenizer = open_model(tmp_path / "out")
    assert len(network.expert_ids) == 8
    assert tokenizer.decode(tokenizer("the quick fox")["input_ids"]) == "the quick fox"
    packed = QuantizedFolder.open(tmp_path / "out").read(0)
    assert {weight.matrix.bits for expert in packed.values() for weight in expert.weights.values()} == {3}


def test_a_recipe_and_calibration_text(model: Path, tmp_path: Path) -> None:
    recipe = mixed_recipe(model, "gptq")
    write_json(tmp_path / "recipe.json", recipe.to_json())
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "input.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    words = ("--recipe", tmp_path / "recipe.json", "--data", tmp_path / "text", "--contexts", 16, "--length", 40)
    result = quantize(model, *words, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["experts"] == 8 and record["mean_bits"] == recipe.allocation.mean_bits
    folder = QuantizedFolder.open(tmp_path / "out")
    assert folder.recipe.to_json() == recipe.to_json()
    tokens = sum(expert.tokens for expert in folder.read(0).values())
    assert tokens == 16 * 40 * 2, "each token reaches two experts"


@pytest.mark.parametrize("words", [(), ("--bits", 4, "--recipe", "recipe.json")])
def test_either_a_recipe_or_a_width(words: tuple[object, ...], model: Path, tmp_path: Path) -> None:
    if words:
        write_json(tmp_path / "recipe.json", mixed_recipe(model).to_json())
        words = (*words[:-1], tmp_path / words[-1])
    result = quantize(model, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "give either --recipe or --bits" in result.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--recipe", "recipe.json", "--quantizer", "rtn"), "--quantizer needs --bits"),
        (("--recipe", "recipe.json", "--group-size", 16), "--group-size needs --bits"),
        (("--bits", 4, "--contexts", 8), "--contexts needs GPTQ"),
        (("--bits", 4, "--quantizer", "hqq", "--data", "nowhere"), "--data needs GPTQ"),
    ],
)
def test_options_that_would_mean_nothing_are_refused(
    words: tuple[object, ...], said: str, model: Path, tmp_path: Path
) -> None:
    write_json(tmp_path / "recipe.json", mixed_recipe(model).to_json())
    words = tuple(tmp_path / word if word == "recipe.json" else word for word in words)
    result = quantize(model, *words, "--out", tmp_path / "out")
    assert result.exit_code == 2 and said in result.output and not (tmp_path / "out").exists()


def test_errors_are_one_line_and_leave_nothing(tmp_path: Path, model: Path) -> None:
    for source, out in ((tmp_path, "out"), (model, "model")):
        result = quantize(source, "--bits", 4, "--out", tmp_path / out)
        assert result.exit_code == 1
        assert result.stderr.startswith("wattbit: ") and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
    if not torch.cuda.is_available():
        result = quantize(model, "--bits", 4, "--device", "cuda", "--out", tmp_path / "out")
        assert result.exit_code == 1 and "no GPU" in result.stderr
    assert quantize(model, "--bits", 9, "--out", tmp_path / "out").exit_code == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"float_columns": {"L0E0": [64]}}, "must leave some of the columns 0..63, not 64"),
        ({"float_columns": {"L0E0": list(range(64))}}, "must leave some of the columns 0..63"),
        ({"float_columns": {"L0E0": [3, 3]}}, "must be different and at least 0, not [3, 3]"),
        ({"float_columns": {"L0E0": [-1]}}, "must be different and at least 0, not [-1]"),
        ({"ranks": {"L0E0": -2}}, "must be at least 0, not -2"),
        ({"ranks": {"L7E0": 2}}, "ranks or float_columns of L7E0, which the model lacks"),
        ({"compensator_bits": 9}, "compensator_bits must be within 2..8, not 9"),
        ({"group_size": "x"}, "group_size must be a whole number, not 'x'"),
        ({"group_size": 16.5}, "group_size must be a whole number, not 16.5"),
        ({"group_size": 0}, "group_size must be at least 1 or None, not 0"),
        ({"compensator_bits": 2.5}, "compensator_bits must be a whole number, not 2.5"),
        ({"ranks": {"L0E0": 2.5}}, "no recipe (TypeError"),
        ({"float_columns": {"L0E0": [1.5]}}, "no recipe (TypeError"),
        ({"pruning": {"ratio": ["x", "y"], "protected": 0.1}}, "no recipe (ValueError"),
        (
            {"pruning": {"ratio": [float("nan")], "protected": 0.1}},
            "ratios of pruning must be numbers, not [nan]",
        ),
        ({"pruning": {"ratio": [0.5], "protected": None}}, "no recipe (TypeError"),
        ({"pruning": {"ratio": [0.1]}}, "no recipe (KeyError: 'protected')"),
        ({"foo": 1}, "no recipe (TypeError"),
        ([], "no recipe (TypeError"),
    ],
)
def test_a_recipe_that_is_none_of_this_model(changed: Any, said: str, model: Path, tmp_path: Path) -> None:
    recipe = mixed_recipe(model).to_json() | changed if changed else changed
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    result = quantize(model, "--recipe", tmp_path / "recipe.json", "--out", tmp_path / "out")
    assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "value"), [("num_attention_heads", 0), ("hidden_act", "x"), ("hidden_size", "x")])
def test_a_configuration_of_no_network(name: str, value: object, model: Path, tmp_path: Path) -> None:
    write_json(model / "config.json", read_json(model / "config.json") | {name: value})
    result = quantize(model, "--bits", 4, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "config.json makes no network" in result.stderr, result.output
    assert not (tmp_path / "out").exists()


def test_compile_writes_beside_nothing_foreign(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    result = run("compile", model, "--bits", 4, "--out", out)
    assert result.exit_code == 1 and "holds other files (thesis.txt)" in result.stderr
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


def test_groups_that_no_matrix_has(model: Path, tmp_path: Path) -> None:
    result = run("compile", model, "--bits", 4, "--group-size", 48, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "a multiple of 32 that divides 64 columns, not 48" in result.stderr
    assert not (tmp_path / "out").exists()


def test_too_little_text(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "input.txt").write_text("the quick brown fox\n" * 40)
    words = ("--quantizer", "gptq", "--data", tmp_path / "text", "--out", tmp_path / "out")
    result = quantize(model, "--bits", 4, "--length", 128, *words)
    assert result.exit_code == 1 and "16384 are needed" in result.stderr


def test_contexts_beyond_a_models_positions_are_refused(model: Path, tmp_path: Path) -> None:
    words = ("--bits", 4, "--quantizer", "gptq", "--length", 129, "--out", tmp_path / "out")
    for refused in (quantize(model, *words), run("eval", "--model", model, "--context", 129)):
        assert refused.exit_code == 1
        assert refused.stderr.endswith(f"129 tokens are beyond the 128 positions of {model}; ask for fewer\n")
    assert not (tmp_path / "out").exists()


def spoil(folder: Path, name: str) -> None:
    """A tensor of a checkpoint gets NaN in its first row."""
    path = Checkpoint.open(folder).files[name]
    tensors = load_file(path)
    tensors[name][0] = torch.nan
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("words", "tensor", "said"),
    [
        (("quantize",), "block_sparse_moe.experts.1.w1", "L0E1 of the model: weights need a scale of nan"),
        (("quantize", "--quantizer", "gptq"), "self_attn.o_proj", "of the model: GPTQ's calibration inputs are no"),
        (("compile",), "block_sparse_moe.experts.1.w1", "tensor layers.0.experts.1.gate has weights that are no"),
    ],
)
def test_weights_that_are_no_numbers(
    words: tuple[str, ...], tensor: str, said: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is one line, and the folder is free for other work."""
    monkeypatch.setattr("wattbit.tvm_schedules.model.pack.link", lambda *_: None)  # compiles for seconds, before
    (tmp_path / "input.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    data = ("--data", tmp_path, "--contexts", 16, "--length", 40) if "gptq" in words else ()
    good = shutil.copytree(model, tmp_path / "good")
    spoil(model, f"model.layers.0.{tensor}.weight")
    result = run(*words, model, "--bits", 4, "--out", tmp_path / "out", *data)
    assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1, result.output
    assert not (tmp_path / "out").exists()
    assert quantize(good, "--bits", 4, "--out", tmp_path / "out").exit_code == 0


def test_a_tokenizer_beside_code_of_its_own(tmp_path: Path) -> None:
    """DeepSeek-MoE 16B names classes of its repository, which are not run."""
    folder = checkpoint("deepseek", tmp_path)
    save_tokenizer(folder)
    network, tokenizer = open_model(folder)
    assert len(network.expert_ids) == 16 and tokenizer.decode(tokenizer("the fox")["input_ids"]) == "the fox"


def test_a_checkpoint_compiled_and_continued(tmp_path: Path) -> None:
    """From safetensors to text from the C runtime, as the reference in PyTorch continues it."""
    folder = checkpoint("mixtral", tmp_path / "model")
    save_tokenizer(folder)
    recipe = mixed_recipe(folder)
    write_json(tmp_path / "recipe.json", recipe.to_json())
    words = ("--recipe", tmp_path / "recipe.json", "--group-size", 32, "--context", 40, "--out", tmp_path / "out")
    done = run("compile", folder, *words)
    assert done.exit_code == 0, done.output
    config, floats = gated_weights(Checkpoint.open(folder), 40)
    reference = quantize_gated(config, floats, recipe.allocation, group_size=32)
    tokenizer = open_tokenizer(folder)
    prompt = tokenizer("the quick brown fox")["input_ids"]
    with Decoder(tmp_path / "out", threads=1) as decoder:
        found = decoder.feed(prompt)
        expected = reference.logits(torch.tensor(prompt))[-1].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * np.abs(expected).max())
    text = run("generate", "the quick brown fox", "--model", tmp_path / "out", "--tokens", 8)
    assert text.exit_code == 0, text.output
    assert text.stdout == tokenizer.decode(greedy(reference.logits, prompt, 8)) + "\n"
    refused = run("generate", "the fox", "--model", tmp_path / "out", "--host", "localhost")
    assert refused.exit_code == 2 and "--model is a model of its own" in refused.output
    for name, said in (("tokenizer.json", "tokenizer.json cannot be read"), ("model.json", "is of no runtime's model")):
        kept = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).write_text("{}")
        broken = run("generate", "the fox", "--model", tmp_path / "out")
        assert broken.exit_code == 1 and said in broken.stderr, broken.output
        (tmp_path / "out" / name).write_bytes(kept)
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert "write it with `wattbit compile`" in run("generate", "the fox", "--model", tmp_path / "out").stderr


def test_contexts_are_the_first_tokens(model: Path) -> None:
    tokenizer = open_tokenizer(model)
    texts = ["the quick", " brown fox", " and more"]
    ids = [token for text in texts for token in tokenizer(text)["input_ids"]]
    assert first_contexts(tokenizer, texts, 2, 3).flatten().tolist() == ids[:6]
