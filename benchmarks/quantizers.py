"""What the quantizers are worth on a model of our own, at equal widths.

    python benchmarks/quantizers.py [--quick] [--json FILE] [--runs FOLDER]

Models of 16 experts in each of two layers, trained on the Python library's sources, one a seed; perplexity on
validation text, weights of experts quantized alone. GPTQ and HQQ against round to nearest at the same width and group
size, and GPTQ's error on other text by calibration tokens a column. A ratio is peer / ours, above 1 where ours is
better; p is of a paired t-test over the seeds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import click
from rows import Benchmark, Row, mean_std, show, write
from scipy.stats import ttest_rel

from wattbit.models.config import DEMO_MODEL, DEMO_TRAIN
from wattbit.models.data import prepare
from wattbit.models.learner import MoELearner
from wattbit.models.own import OwnModel
from wattbit.models.quantizers import gptq, rtn
from wattbit.models.sample import draw
from wattbit.models.subject import ModelSubject
from wattbit.models.train import train
from wattbit.plan import Allocation
from wattbit.recipe import QUANTIZERS, Quantizer, Recipe

SEEDS = (0, 1, 2)
STEPS, QUICK_STEPS = 800, 200  # of training
WIDTHS = (2, 3, 4)
GROUPS = (None, 32)
TOKENS_A_COLUMN = (0.5, 1, 2, 4, 8)

Found = dict[str, dict[str, list[float]]]
"""Values over the seeds by case and method."""


def quantized(learner: MoELearner, found: Found) -> None:
    """Perplexity by width, group size and quantizer."""
    subject = ModelSubject(OwnModel.of(learner), learner.samples.calibration, learner.samples.valid)

    def price(bits: int, group: int | None, quantizer: Quantizer) -> float:
        allocation = Allocation.of(dict.fromkeys(subject.experts, bits))
        return subject.perplexity(Recipe("uniform", allocation, quantizer, group))

    for bits in WIDTHS:
        for group in GROUPS:
            case = found.setdefault(f"{bits} bits, {'a scale a row' if group is None else f'groups of {group}'}", {})
            for quantizer in QUANTIZERS:
                case.setdefault(quantizer, []).append(price(bits, group, quantizer))
            case.setdefault("float", []).append(subject.perplexity(None))


def starved(learner: MoELearner, found: Found) -> None:
    """GPTQ's squared error on validation text as a share of rounding's, at 3 bits, by calibration tokens a column."""
    model = OwnModel.of(learner)
    columns = learner.config.d_model
    contexts = draw(learner.samples.train, learner.config.context, 128, 7, 0)
    given, other = model.trace(contexts[:, :-1]), model.trace(learner.samples.valid[:64, :-1])
    for tokens in TOKENS_A_COLUMN:
        ours = plain = 0.0
        for expert in model.expert_ids:
            x, y = (t[expert.layer].inputs[t[expert.layer].rows(expert.expert)[0]] for t in (given, other))
            x, judge, weights = x[: int(tokens * columns)], gptq.hessian(y), model.matrices(expert)["w1"]
            ours += gptq.loss(weights, gptq.quantize(weights, gptq.hessian(x), 3), judge).sum().item()
            plain += gptq.loss(weights, rtn.quantize(weights, 3), judge).sum().item()
        case = found.setdefault(f"GPTQ with {tokens} tokens a column, 3 bits", {})
        case.setdefault("gptq", []).append(ours)
        case.setdefault("rtn", []).append(plain)


def models(quick: bool, runs: Path) -> Iterator[tuple[int, Path, Path]]:
    """Seed, data and model of each seed; trained where `runs` does not hold them yet."""
    steps, root = QUICK_STEPS if quick else STEPS, runs / "quantizers"
    if not (root / "data" / "data.json").exists():
        prepare(None, root / "data", DEMO_MODEL.vocab_size)
    for seed in SEEDS[:1] if quick else SEEDS:
        out = root / f"{steps}-{seed}"
        train(root / "data", out, DEMO_MODEL, replace(DEMO_TRAIN, seed=seed, steps=steps, threads=1))
        yield seed, root / "data", out


def row(case: str, metric: str, ours: Sequence[float], peer: Sequence[float], name: str, seeds: tuple[int, ...]) -> Row:
    several = len(seeds) > 1
    alike = all(abs(a - b) <= 1e-12 * abs(b) for a, b in zip(ours, peer, strict=True))  # there is nothing to test
    return Row(
        case,
        metric,
        *mean_std(ours),
        *mean_std(peer),
        name,
        fmean(peer) / fmean(ours),
        None,
        "measured",
        seeds,
        float(ttest_rel(ours, peer).pvalue) if several and not alike else None,
    )


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a benchmark on these models."""
    for option in (
        click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Where models are kept."),
        click.option("--json", "out", type=click.Path(path_type=Path), help="Write the rows here."),
        click.option("--quick", is_flag=True, help=f"One seed, a model trained for {QUICK_STEPS} steps."),
    ):
        command = option(command)
    return command


@click.command(cls=Benchmark, help=__doc__)
@model_options
def main(quick: bool, out: Path | None, runs: Path) -> None:
    found: Found = {}
    seeds = []
    for seed, data, model_dir in models(quick, runs):
        seeds.append(seed)
        learner = MoELearner.open(data, model_dir)
        quantized(learner, found)
        starved(learner, found)
    rows = []
    for case, values in found.items():
        metric = "squared error" if "tokens" in case else "perplexity"
        peer = values.pop("rtn")
        rows += [row(case, f"{metric}, {name}", ours, peer, "rtn", tuple(seeds)) for name, ours in values.items()]
        show(rows[-len(values) :])
    if out:
        write(rows, out)


if __name__ == "__main__":
    main()
