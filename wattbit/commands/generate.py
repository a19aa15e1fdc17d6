"""`wattbit generate`: text from a run's quantized model, decoded on its board, another board or this machine."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.perform import Host, one_run, perform, run_option
from wattbit.run import Run, cache_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

THIS_MACHINE = "localhost"
NO_PROMPT = "the prompt has no tokens; give some text"
AT_ONCE = 4  # tokens that a board is asked for at a time
PARTIAL = "\ufffd"  # what the beginning of a character of several bytes decodes to


@click.command()
@click.argument("prompt")
@run_option
@click.option(
    "--model",
    "compiled",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="In place of a run's model one that `wattbit compile` wrote, on this machine.",
)
@click.option("--board", help="Board to decode on: a name or a TOML file; by default that of the run.")
@click.option(
    "--host",
    type=Host(),
    help="SSH host to decode on, of the run's target; localhost is this machine, without SSH.",
)
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(min=1), help="Tokens to generate.")
@click.option(
    "--temperature",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="0 takes the likeliest token; 1 draws as trained.",
)
@click.option(
    "--top-k",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**31 - 1),
    help="Draw from this many likeliest tokens; 0: from all.",
)
@click.option(
    "--on-cores",
    help="Experts that run on the board's cores although they have an engine there: L0E3,L1E0 or all.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**64 - 1), help="Seed of the draws.")
def command(
    prompt: str,
    folder: Path | None,
    compiled: Path | None,
    board: str | None,
    host: str | None,
    tokens: int,
    temperature: float,
    top_k: int,
    on_cores: str | None,
    seed: int,
) -> None:
    """Continue PROMPT with a run's quantized model, as PyTorch's would.

    The whole model runs on the board: experts on their FPGA engines, everything else on its cores, and with --on-cores
    some experts too: the text is the same. It is written as it comes, and ends where the model's context does.
    """
    if board and host:
        raise click.UsageError("--board and --host both say where to decode; give one")
    if compiled and (folder or board or host):
        raise click.UsageError(
            "--model is a model of its own, for this machine; --run, --board and --host are of a run"
        )
    if on_cores and (compiled or host == THIS_MACHINE):
        raise click.UsageError("--on-cores is of a board with engines; on this machine all experts run on the cores")
    if not prompt:
        raise WattbitError(NO_PROMPT)
    if board:
        from wattbit.board.targets import load

        load(board)  # a name that is none is said before the stages' minutes
    here = compiled  # the model's folder where it runs on this machine
    if compiled:
        vocabulary = compiled_vocabulary(compiled)
    else:
        run = one_run(folder)
        perform(run, "build" if host == THIS_MACHINE else "deploy")
        from wattbit.models.data import load_vocabulary

        vocabulary = load_vocabulary(run.path("data"))
        here = run.path("build", "host", "decoder") if host == THIS_MACHINE else None
    ids = vocabulary.encode(prompt, add_special_tokens=False).ids
    if not ids:
        raise WattbitError(NO_PROMPT)
    request: dict[str, Any] = {"prompt": ids, "temperature": temperature, "top_k": top_k, "seed": seed}
    if on_cores:
        request["on_cores"] = experts_of(run, on_cores)
    found = on_this_machine(here, tokens, request) if here else on_board(run, board, host, tokens, request)
    begin_s = time.monotonic()
    count = stream(vocabulary, found)
    speed = f", {count / (time.monotonic() - begin_s):.0f} tokens/s with the prompt (measured)" if here else ""
    click.echo(f"{count} tokens{speed}", err=True)


def experts_of(run: Run, words: str) -> list[str]:
    """The experts that `--on-cores` names; WattbitError for one that the run has not."""
    from wattbit.pipeline import final_allocation

    known = [str(placement.expert) for placement in final_allocation(run).placements]
    named = known if words == "all" else words.split(",")
    strange = sorted(set(named) - set(known))
    if strange:
        raise WattbitError(
            f"the run has no expert {strange[0]!r}; name some of {known[0]} to {known[-1]}, as in L0E3,L1E0"
        )
    return named


def stream(vocabulary: "Tokenizer", tokens: Iterator[int]) -> int:
    """Write the text of tokens as they come, whole characters only; how many tokens there were."""
    ids: list[int] = []
    written = ""
    for token in tokens:
        ids.append(token)
        text: str = vocabulary.decode(ids)
        if not text.endswith(PARTIAL):
            click.echo(text[len(written) :], nl=False)
            sys.stdout.flush()
            written = text
    click.echo(vocabulary.decode(ids)[len(written) :])
    return len(ids)


def compiled_vocabulary(folder: Path) -> "Tokenizer":
    """The tokenizer that `wattbit compile` put beside the model."""
    from tokenizers import Tokenizer

    for name in ("model.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise WattbitError(f"{folder} has no {name}; write it with `wattbit compile`")
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # noqa: BLE001 - tokenizers raises no other class
        raise WattbitError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}); write it with `wattbit compile`"
        ) from None


def on_this_machine(folder: Path, count: int, request: dict[str, Any]) -> Iterator[int]:
    from wattbit.tvm_schedules.model.runtime import Decoder, Sampling

    with Decoder(folder) as decoder:
        sampling = Sampling(request["temperature"], request["top_k"], request["seed"])
        yield from decoder.generate(request["prompt"], count, sampling)


def on_board(run: Run, name: str | None, host: str | None, count: int, request: dict[str, Any]) -> Iterator[int]:
    from wattbit.board.client import AgentClient
    from wattbit.board.connect import board
    from wattbit.board.deploy import deploy

    bundle, home = bundle_for(run, name), run.path("board")
    with Display() as display:
        display.begin("generate", "board")
        with (
            board(name or run.config.board, cache_folder(), home, display, host) as connection,
            AgentClient(connection, deploy(bundle, connection, display)) as agent,
        ):
            agent.request("load")
            tokens = agent.request("generate", count=min(AT_ONCE, count), **request)["tokens"]
            while tokens:
                yield from tokens
                count -= len(tokens)
                tokens = agent.request("generate", count=min(AT_ONCE, count))["tokens"] if count else []
            agent.request("quit")


def bundle_for(run: Run, name: str | None) -> Path:
    """The run's own bundle, or what `wattbit board` last made for another board."""
    if name in (None, run.config.board):
        return run.path("bundle")
    from wattbit.board.targets import load

    target = load(str(name)).target.name
    chosen = run.path("board", target, "chosen.json")
    if not chosen.is_file():
        raise WattbitError(f"the run has no bundle for {target}; make one with `wattbit board --board {name}`")
    return run.path("board", target, read_json(chosen)["toolchain"], "bundle")
