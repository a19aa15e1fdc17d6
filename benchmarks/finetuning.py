"""What the float model as a teacher is worth when experts are fine-tuned at their widths.

    python benchmarks/finetuning.py [--quick] [--json FILE] [--runs FOLDER]

The models of benchmarks/quantizers.py, fine-tuned in the deployed integer arithmetic (activations of 8 bits), straight
through the rounding: with the float model as teacher against cross-entropy alone. A ratio is peer / ours of
perplexities on validation text, above 1 where ours is better; p is of a paired t-test over the seeds.
"""

from pathlib import Path

import click
from quantizers import Found, model_options, models, row
from rows import Benchmark, show, write

from wattbit.models import learner as learner_module
from wattbit.models.learner import MoELearner
from wattbit.plan import Allocation

WIDTHS = (2, 3)
STEPS, QUICK_STEPS = 100, 10
TUNINGS = {  # weight of the teacher in the loss, and learning rate
    "no teacher, rate 4e-4": (0.0, 4e-4),
    "no teacher, rate 1e-3": (0.0, 1e-3),
    "teacher 0.9, rate 1e-3": (0.9, 1e-3),
}


def tuned(data: Path, model_dir: Path, seed: int, steps: int, found: Found) -> None:
    """Perplexity after fine-tuning at a width, with and without a teacher."""
    for bits in WIDTHS:
        for name, (weight, rate) in TUNINGS.items():
            learner = MoELearner.open(data, model_dir, distillation=weight)
            allocation = Allocation.of(dict.fromkeys(learner.config.expert_ids, bits))
            learner_module.FINETUNE_RATE = learner_module.TAUGHT_RATE = rate
            learner.finetune(allocation, steps, seed)
            case = found.setdefault(f"fine-tuned at {bits} bits for {steps} steps", {})
            case.setdefault(name, []).append(learner.perplexity(allocation))


@click.command(cls=Benchmark, help=__doc__)
@model_options
def main(quick: bool, out: Path | None, runs: Path) -> None:
    found: Found = {}
    seeds = []
    for seed, data, model_dir in models(quick, runs):
        seeds.append(seed)
        tuned(data, model_dir, seed, QUICK_STEPS if quick else STEPS, found)
    rows = []
    for case, values in found.items():
        peer, *ours = TUNINGS
        rows += [row(case, f"perplexity, {name}", values[name], values[peer], peer, tuple(seeds)) for name in ours]
        show(rows[-len(ours) :])
    if out:
        write(rows, out)


if __name__ == "__main__":
    main()
