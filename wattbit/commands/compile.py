"""`wattbit compile`: a Hugging Face checkpoint as weights and library of the C runtime."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wattbit.commands.quantize import one_source, read_recipe, width_options
from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import atomic
from wattbit.perform import writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wattbit.tvm_schedules.model.format import DecoderConfig

TOKENIZER = "tokenizer.json"
OWN = {TOKENIZER, "model.json", "model.wattbit", "libwattbit_model.so"}


@dataclass(eq=False)  # not frozen: the protocol's fields can be set
class CheckpointSource:
    """Implements `wattbit.tvm_schedules.model.source.Source`."""

    config: "DecoderConfig"
    bits: dict[str, int]
    group: dict[str, int]
    shapes: dict[str, tuple[int, int]]
    load: "Callable[[str], NDArray[Any]]"


@click.command()
@width_options
@click.option(
    "--backbone-bits",
    type=click.IntRange(2, 8),
    default=8,
    show_default=True,
    help="Width of attention, output layer and shared experts.",
)
@click.option("--head-bits", type=click.IntRange(2, 8), help="Width of the output layer, where it is another one.")
@click.option(
    "--group-size",
    type=click.IntRange(min=32),
    help="Columns of a row that share a scale, a multiple of 32; by default the whole row.",
)
@click.option(
    "--context",
    type=click.IntRange(min=1),
    default=2048,
    show_default=True,
    help="Tokens that the runtime has room for, at most the model's own.",
)
@click.option("--core", help="Core to compile for, as in a board's TOML; by default this machine's.")
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
def command(
    model: str,
    recipe_file: Path | None,
    bits: int | None,
    backbone_bits: int,
    head_bits: int | None,
    group_size: int | None,
    context: int,
    core: str | None,
    out: Path,
) -> None:
    """Compile MODEL, a folder or hub id with safetensors, for the C runtime: `wattbit generate --model` runs it.

    Mixtral, OLMoE and Qwen-MoE without dense layers are such models. One matrix is in memory at a time. The runtime has
    scales of its own (symmetric, the best of several clips) and 8-bit activations.
    """
    one_source(recipe_file, bits)
    own_folder(writable(out))
    from wattbit.models.checkpoint import Checkpoint
    from wattbit.models.families.gated import GatedStream, gated_weights
    from wattbit.models.quantizers.apply import check_allocation
    from wattbit.plan import Allocation
    from wattbit.tvm_schedules.cores import host_core
    from wattbit.tvm_schedules.model.format import DecoderConfig
    from wattbit.tvm_schedules.model.pack import build

    with Display() as display:
        display.begin("compile", f"checkpoint {model}")
        checkpoint = Checkpoint.open(model)
        tokenizer = checkpoint.folder / TOKENIZER
        if not tokenizer.is_file():
            raise WattbitError(f"{checkpoint.folder} has no {TOKENIZER}; save it there with `save_pretrained`")
        config, floats = gated_weights(checkpoint, context)
        if recipe_file:
            allocation = read_recipe(recipe_file).allocation
        else:
            allocation = Allocation.of(dict.fromkeys(config.expert_ids, bits or 0), engine="arm")
        check_allocation(allocation, config.expert_ids)
        stream = GatedStream(config, floats, allocation, backbone_bits, group_size, head_bits)
        sizes = DecoderConfig.from_json(stream.sizes)
        source = CheckpointSource(sizes, stream.bits, stream.group, stream.shapes, stream.load)
        new = not out.exists()
        try:
            with atomic(out / TOKENIZER) as temporary:
                shutil.copyfile(tokenizer, temporary)
            record = build(source, core or host_core().name, out, display)
        except WattbitError:
            if new:
                shutil.rmtree(out)
            raise
    click.echo(
        f"{out}: {record['weights']['bytes'] / 1e6:.1f} MB for {record['core']}; `wattbit generate --model {out}`"
    )


def own_folder(out: Path) -> None:
    """WattbitError for a folder with files that are no earlier compilation's, nor hidden, as what a kill leaves."""
    names = (path.name for path in out.iterdir()) if out.exists() else ()
    foreign = sorted(name for name in names if name not in OWN and not name.startswith("."))
    if foreign:
        raise WattbitError(f"{out} holds other files ({foreign[0]}); give an empty or a new folder")
