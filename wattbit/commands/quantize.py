"""`wattbit quantize`: a Hugging Face checkpoint with its experts packed at the widths of a recipe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.perform import device_option, json_option, refuse_given, writable
from wattbit.recipe import QUANTIZERS, Quantizer, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from wattbit.models.checkpoint import Checkpoint


def width_options(command: Callable[..., None]) -> Callable[..., None]:
    """MODEL and where its experts' widths come from, which `one_source` checks."""
    for option in (
        click.option("--bits", type=click.IntRange(2, 8), help="Without a recipe: one width for all experts."),
        click.option(
            "--recipe",
            "recipe_file",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            help="JSON file of a recipe, or of `wattbit compare` (OUT/cells) or `wattbit eval --json`.",
        ),
        click.argument("model"),
    ):
        command = option(command)
    return command


def one_source(recipe_file: Path | None, bits: int | None) -> None:
    if (recipe_file is None) == (bits is None):
        raise click.UsageError("give either --recipe or --bits")


@click.command()
@width_options
@click.option(
    "--quantizer",
    type=click.Choice(QUANTIZERS),
    default="rtn",
    show_default=True,
    help="With --bits: round to nearest, GPTQ or HQQ.",
)
@click.option(
    "--group-size",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="With --bits: columns of a row that share a scale.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the quantized model."
)
@click.option(
    "--data", help="GPTQ's calibration text: a folder, wikitext-2, wikitext-103, c4; by default Python's sources."
)
@click.option("--contexts", default=128, show_default=True, type=click.IntRange(min=1), help="GPTQ's contexts.")
@click.option("--length", default=512, show_default=True, type=click.IntRange(min=2), help="Tokens of each of them.")
@device_option("auto", "layers are computed")
@json_option
def command(
    model: str,
    recipe_file: Path | None,
    bits: int | None,
    quantizer: Quantizer,
    group_size: int,
    out: Path,
    data: str | None,
    contexts: int,
    length: int,
    device: str,
    as_json: bool,
) -> None:
    """Quantize the experts of MODEL, a folder or hub id with safetensors, one layer in memory at a time.

    Mixtral, Switch Transformer, OLMoE, Qwen-MoE and DeepSeek-MoE are known. An interrupted run goes on where it was.
    The folder holds the whole model: what is not an expert's stays as it was.
    """
    one_source(recipe_file, bits)
    given = read_recipe(recipe_file) if recipe_file else None
    if given:
        refuse_given(("quantizer", "group_size"), "--bits; a recipe says its own")
    if (given.quantizer if given else quantizer) != "gptq":
        refuse_given(("data", "contexts", "length"), "GPTQ, which alone reads calibration text")
    writable(out)
    from wattbit.models.checkpoint import Checkpoint
    from wattbit.models.distributed import choose_device
    from wattbit.models.families.streaming import quantize_checkpoint

    where = str(choose_device(device))
    with Display() as display:
        display.begin("open", f"checkpoint {model}")
        checkpoint = Checkpoint.open(model)
        recipe = given or uniform(checkpoint, bits or 0, quantizer, group_size)
        calibration = None
        if recipe.quantizer == "gptq":
            display.begin("text", f"{contexts} contexts of {length} tokens")
            calibration = read_contexts(checkpoint, data, contexts, length)
        display.begin("quantize", recipe.method)
        result = quantize_checkpoint(checkpoint, recipe, out, calibration, where, display)
    if as_json:
        click.echo(json.dumps({"out": str(out), "recipe": recipe.method, **result}, indent=1))
    else:
        click.echo(summary(out, result))


def recipe_record(path: Path) -> Any:
    """What a file holds, or the recipe in it where it is a result of `wattbit compare` or `wattbit eval --json`."""
    record = read_json(path)
    return record["recipe"] if isinstance(record, dict) and record.get("recipe") else record


def read_recipe(path: Path) -> Recipe:
    record = recipe_record(path)
    try:
        return Recipe.from_json(record)
    except WattbitError as error:
        raise WattbitError(f"{path}: {error}") from None


def uniform(checkpoint: "Checkpoint", bits: int, quantizer: Quantizer, group_size: int) -> Recipe:
    from wattbit.models.families.streaming import checkpoint_experts
    from wattbit.plan import Allocation

    allocation = Allocation.of(dict.fromkeys(checkpoint_experts(checkpoint), bits), engine="arm")
    return Recipe(f"uniform {bits}", allocation, quantizer, group_size)


def read_contexts(checkpoint: "Checkpoint", data: str | None, count: int, length: int) -> "Tensor":
    from wattbit.models.corpus import read_corpus
    from wattbit.models.families.open import open_tokenizer
    from wattbit.models.families.text import first_contexts

    checkpoint.check_context(length)
    return first_contexts(open_tokenizer(checkpoint.folder), read_corpus(data).train, count, length)


def summary(out: Path, result: dict[str, Any]) -> str:
    stored, before = result["expert_bytes"] / 1e6, result["float_expert_bytes"] / 1e6
    lines = [
        f"{out}: {result['experts']} experts at {result['mean_bits']:.2f} bits, {stored:.1f} MB with scales and "
        f"compensators, {before:.1f} MB as 16-bit float"
    ]
    if fallen := result["rounded_to_nearest"]:
        lines.append(f"rounded to nearest, for too few calibration tokens: {', '.join(fallen)}")
    return "\n".join(lines)
