"""`wattbit eval`: what a recipe does to a model: perplexity, GLUE, bytes, latency, and what calibration saw."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from wattbit.commands.quantize import read_recipe
from wattbit.display import Display
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.perform import SEED, device_option, json_option, one_run, refuse_given, run_option
from wattbit.plan import Meter, Workload
from wattbit.progress import Progress
from wattbit.recipe import Budget, Recipe
from wattbit.report import figure, significant, table
from wattbit.run import Run

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from wattbit.models.expert_model import ExpertModel
    from wattbit.models.learner import MoELearner
    from wattbit.models.own import OwnModel
    from wattbit.models.subject import ModelSubject
    from wattbit.models.tasks import Probe, Task

TOKENS = 1000  # of the workload that the meter prices
CONTEXTS = 64  # of calibration text


@dataclass(frozen=True, eq=False)
class Tuning:
    """Tasks that a copy of the whole model is fine-tuned on for so many steps, see `wattbit.models.tuning`."""

    learner: "MoELearner"
    vocabulary: "Tokenizer"
    tasks: "tuple[Task, ...]"
    steps: int

    def scores(self, recipe: Recipe | None, progress: Progress) -> dict[str, float]:
        """At a recipe's widths, in the deployed arithmetic, whatever else the recipe says."""
        from wattbit.models.tuning import tuned_score

        widths = None if recipe is None else recipe.allocation
        seed = self.learner.train_config.seed
        return {
            task.name: tuned_score(task, self.learner, self.vocabulary, widths, self.steps, seed, progress)
            for task in self.tasks
        }


@dataclass(frozen=True, eq=False)
class Judge:
    """A model with all that judges it. text: the split that perplexity is of.

    meter: for methods that search, None where none prices this model's experts. weighed: what the result is priced by,
    energy too where it is known; slower. probes, tuning: of wattbit's own models alone, one or the other.
    """

    model: "ExpertModel"
    subject: "ModelSubject"
    text: str
    tokens: "Tensor"
    words: int
    context: int
    stride: int
    meter: Meter | None = None
    weighed: Meter | None = None
    probes: "tuple[Probe, ...]" = ()
    tuning: Tuning | None = None

    def workload(self) -> Workload:
        stats = self.subject.stats(())
        return Workload(TOKENS, self.subject.top_k, tuple((s.expert, s.frequency) for s in stats))

    def decide(self, method: str, budget: Budget, seed: int) -> Recipe:
        from wattbit.policy.methods.registry import ON_HARDWARE
        from wattbit.policy.methods.registry import method as named

        priced = method in ON_HARDWARE and self.meter is not None
        return named(method, self.meter, self.workload() if priced else None).decide(self.subject, budget, seed)

    def evaluate(self, recipe: Recipe | None, progress: Progress) -> dict[str, Any]:
        """Everything that `wattbit eval` shows, of the model quantized so; None is the float model."""
        from wattbit.models.evaluation import perplexity

        pruning = None if recipe is None else recipe.pruning
        with self._quantized(recipe) as rounded:
            found = perplexity(
                lambda contexts: self.model.losses(contexts, pruning),
                self.tokens,
                self.words,
                self.context,
                self.stride,
                progress,
            )
            glue = {probe.task.name: probe.evaluate(self._own().network) for probe in self.probes}
        if self.tuning is not None:
            glue = self.tuning.scores(recipe, progress)
        return {
            "method": "float" if recipe is None else recipe.method,
            "mean_bits": 16.0 if recipe is None else recipe.allocation.mean_bits,
            "expert_bytes": self.subject.memory_bytes(recipe),
            "perplexity": found.to_json() | {"text": self.text},
            "glue": glue,
            "cost": self._cost(recipe),
            "tokens": {str(expert): seen for expert, seen in self.subject.tokens().items()},
            "rounded_to_nearest": rounded,
        }

    def _own(self) -> "OwnModel":
        from wattbit.models.own import OwnModel

        assert isinstance(self.model, OwnModel)
        return self.model

    def _cost(self, recipe: Recipe | None) -> dict[str, Any] | None:
        """Milliseconds and millijoules a token, as the meter has them, or why it refuses; None where there is none."""
        if recipe is None or self.weighed is None:
            return None
        try:
            cost = self.weighed.cost(recipe.allocation, self.workload())
        except InfeasibleError as error:
            return {"refused": str(error)}
        energy = None if cost.energy_j is None else 1e3 * cost.energy_j / TOKENS
        return {"ms_per_token": 1e3 * cost.latency_s / TOKENS, "mj_per_token": energy, "provenance": cost.provenance}

    @contextmanager
    def _quantized(self, recipe: Recipe | None) -> "Iterator[list[str]]":
        """The model with its experts as the recipe says; the experts whose quantizer fell back to round to nearest."""
        from wattbit.models.quantizers.apply import fallen_back

        packed = {} if recipe is None else self.subject.quantize(recipe)
        floats = {expert: self.model.matrices(expert) for expert in packed}
        try:
            for expert, found in packed.items():
                self.model.replace(expert, found.dequantize())
            yield [] if recipe is None else [str(expert) for expert in fallen_back(recipe, packed)]
        finally:
            for expert, matrices in floats.items():
                self.model.replace(expert, matrices)


def judge_run(run: Run, tasks: Sequence[str], stride: int | None, progress: Progress, tune: int = 0) -> Judge:
    """A run's float model; perplexity is of its corpus' test text where there is one, else of the validation text.

    tune: steps of fine-tuning on the tasks, 0 for heads on the frozen model.
    Calibration is training text, which neither split shares.
    """
    import torch

    from wattbit.board.targets import load
    from wattbit.metering import planned_meter
    from wattbit.models.corpus import read_test
    from wattbit.models.data import encode, load_vocabulary
    from wattbit.models.evaluation import count_words
    from wattbit.models.own import OwnModel
    from wattbit.models.sample import CALIBRATION_SEED, draw
    from wattbit.models.subject import ModelSubject
    from wattbit.models.tasks import Probe, read_task
    from wattbit.pipeline import check, learner, meter, target

    check(run)
    opened = learner(run)
    vocabulary = load_vocabulary(run.path("data"))
    split, texts = read_test(run.config.data)
    samples, context = opened.samples, opened.config.context
    calibration = draw(samples.train, context, CONTEXTS, CALIBRATION_SEED, 0)
    read = tuple(read_task(task) for task in tasks)
    return Judge(
        OwnModel.of(opened),
        ModelSubject(OwnModel.of(opened), calibration, samples.valid, progress),
        split,
        torch.from_numpy(encode(vocabulary, texts).astype("int64")),
        sum(map(count_words, texts)),
        context,
        stride or max(1, context // 2),
        meter(run),
        planned_meter(load(run.config.board), opened.config.shape, target(run)),
        () if tune else tuple(Probe.fit(task, opened.network, vocabulary) for task in read),
        Tuning(opened, vocabulary, read, tune) if tune else None,
    )


def judge_checkpoint(
    source: str, data: str | None, context: int, stride: int | None, device: str, progress: Progress
) -> Judge:
    """A Hugging Face checkpoint, with its own tokenizer. It has no meter and no GLUE heads."""
    import torch

    from wattbit.models.checkpoint import Checkpoint
    from wattbit.models.corpus import read_corpus, read_test
    from wattbit.models.evaluation import count_words
    from wattbit.models.families.open import open_model
    from wattbit.models.families.text import first_contexts
    from wattbit.models.subject import ModelSubject

    Checkpoint.open(source).check_context(context)
    model, tokenizer = open_model(source, device)
    calibration = first_contexts(tokenizer, read_corpus(data).train, CONTEXTS, context + 1).to(device)
    split, texts = read_test(data)
    encoded = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
    held = torch.tensor(encoded[: context + 1])[None].to(device)
    words = sum(map(count_words, texts))
    subject = ModelSubject(model, calibration, held, progress)
    tokens = torch.tensor(encoded, device=device)
    return Judge(model, subject, split, tokens, words, context, stride or max(1, context // 2))


def summary(found: dict[str, Any]) -> str:
    """The result as a table of two columns and what is to be known of it."""
    ppl, cost = found["perplexity"], found["cost"]
    lines = [
        ["mean weight bits", figure(found["mean_bits"], 2)],
        ["expert MB (packed)", significant(found["expert_bytes"] / 1e6)],
        [f"perplexity a token ({ppl['text']} text, measured)", figure(ppl["token"], 3)],
        ["perplexity a word (measured)", "-" if ppl["word"] is None else figure(ppl["word"], 2)],
        *([f"GLUE {task} (measured)", figure(value, 4)] for task, value in found["glue"].items()),
    ]
    if cost and "refused" not in cost:
        lines.append([f"ms/token ({cost['provenance']})", significant(cost["ms_per_token"])])
        lines.append([f"mJ/token above idle ({cost['provenance']})", significant(cost["mj_per_token"])])
    seen = sorted(found["tokens"].values())
    lines.append(
        ["calibration tokens an expert, least / median / most", f"{seen[0]} / {seen[len(seen) // 2]} / {seen[-1]}"]
    )
    said = [table([found["method"], ""], lines), f"window of {ppl['context']} tokens, stride {ppl['stride']}"]
    if cost and "refused" in cost:
        said.append(f"no time or energy: {cost['refused']}")
    if found["rounded_to_nearest"]:
        said.append(f"rounded to nearest, for too few calibration tokens: {', '.join(found['rounded_to_nearest'])}")
    return "\n".join(said)


@click.command()
@run_option
@click.option("--model", help="Instead of a run: a Hugging Face checkpoint, a folder or hub id with safetensors.")
@click.option("--data", help="Text for --model: a folder, wikitext-2, wikitext-103, c4; by default Python's sources.")
@click.option("--context", default=512, show_default=True, type=click.IntRange(2), help="Window of --model, tokens.")
@device_option("cpu", "--model is computed")
@click.option(
    "--recipe",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON file of a recipe to evaluate, or of `wattbit compare` (OUT/cells) or `wattbit eval --json`.",
)
@click.option("--method", help="Method that decides a recipe, for instance gptq, mcmoe, dmpq; without one: float.")
@click.option("--bits", default=4.0, show_default=True, help="Budget of --method: mean weight bits of an expert.")
@click.option("--group-size", type=click.IntRange(1), help="Of --method: columns that share a scale; by default a row.")
@click.option("--seed", default=0, show_default=True, type=SEED, help="Seed of --method.")
@click.option("--task", "tasks", multiple=True, help="GLUE task of a run's model: a folder or glue/TASK; repeatable.")
@click.option(
    "--tune",
    default=0,
    type=click.IntRange(0),
    help="Steps to fine-tune the whole model on each task, with a recipe a third as many more at its widths; "
    "by default a head on the frozen model.",
)
@click.option("--stride", type=click.IntRange(1), help="Of the sliding window, tokens; by default half the window.")
@json_option
def command(
    folder: Path | None,
    model: str | None,
    data: str | None,
    context: int,
    device: str,
    recipe: Path | None,
    method: str | None,
    bits: float,
    group_size: int | None,
    seed: int,
    tasks: tuple[str, ...],
    tune: int,
    stride: int | None,
    as_json: bool,
) -> None:
    """Evaluate a run's float model or a checkpoint, its experts quantized by a recipe or a method."""
    if recipe and method:
        raise click.UsageError("give either --recipe or --method")
    if model and (folder or tasks):
        raise click.UsageError("--model is evaluated without --run and --task")
    if tune and not tasks:
        raise click.UsageError("--tune needs a --task")
    if not method:
        refuse_given(("bits", "group_size", "seed"), "--method")
    if not model:
        refuse_given(("data", "context", "device"), "--model")
    from wattbit.models.distributed import choose_device
    from wattbit.policy.methods.registry import ON_HARDWARE, check_name

    chosen, budget = read_recipe(recipe) if recipe else None, Budget(bits, group_size=group_size)
    if method:
        check_name(method)
        if model and method in ON_HARDWARE:
            raise click.UsageError(f"--method {method} prices hardware, and a checkpoint has no board; evaluate a run")
    with Display() as display:
        display.begin("open", "model")
        if model:
            judge = judge_checkpoint(model, data, context, stride, str(choose_device(device)), display)
        else:
            run = one_run(folder)
            if run.record("train") is None:
                raise WattbitError(f"{run.folder} has no trained model; run `wattbit train` with its options")
            judge = judge_run(run, tasks, stride, display, tune)
        display.begin("decide", method or "recipe")
        if method:
            chosen = judge.decide(method, budget, seed)
        display.begin("evaluate", "perplexity and tasks")
        found = judge.evaluate(chosen, display)
    if as_json:
        click.echo(json.dumps(found | {"recipe": chosen and chosen.to_json()}, indent=1))
    else:
        click.echo(summary(found))
