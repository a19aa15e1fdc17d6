"""A search that preserves a GLUE task (`wattbit search --task`): how noisy its damage is, and what it finds.

    python benchmarks/policy_tasks.py --task ../shared/data/sst2-glue [--task ...] [--quick] [--json FILE]

The models are those that `fpga_engines.py` trained on WikiText-2 (run that first, with its --text), E=16, from
FOLDER/fpga-engines. Of every task three things are measured with each expert alone at each width: the divergence of
the head's predictions, the rise of its negative log-likelihood, and the fall of its accuracy. A form's reliability is
the correlation over the experts between one half of the sentences and the other: what is 0 says nothing of an expert.

Then the exact optimum of the task's table at BUDGET bits is compared on the task's development split, which chose
nothing, with that of the text's table, a random allocation of the budget, uniform 8 bit and float: by the task's own
metric, and by how far the head's predictions move from the float model's, which needs no thousands of sentences to be
told from noise. A ratio is (1 + ours) / (1 + peer) where more is better, as correlations and metrics may be 0, and
peer / ours for divergences: above 1 our table or the divergence is better.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import cells
import click
import numpy as np
import torch
import torch.nn.functional as F
from policy_vs_controls import SEEDS, Free
from rows import Benchmark, Row, show, write
from scipy.stats import ttest_rel

from wattbit.errors import WattbitError
from wattbit.files import read_json, sha256_file, write_json
from wattbit.models.data import load_vocabulary
from wattbit.models.learner import MoELearner
from wattbit.models.task_subject import TaskSubject
from wattbit.models.tasks import read_task
from wattbit.perform import RUNS
from wattbit.plan import Allocation, ExpertStats, Workload
from wattbit.policy.controls import random_allocation
from wattbit.policy.exact import solve
from wattbit.policy.problem import Floats, Problem
from wattbit.policy.smoothing import smoothed

WIDTHS = (2, 3, 4, 8)
BUDGET = 2.25  # bits: where widths matter most
FORMS = ("divergence", "log-likelihood", "accuracy")
OURS = "task's table"
PEERS = ("text's table", "random", "uniform 8 bit", "float")
MOVED = "divergence on the development split, nats"


def trained(seed: int, root: Path) -> Path:
    """A model that `fpga_engines.py` trained, and its text."""
    folder = root / "fpga-engines" / f"E16-seed{seed}"
    if not (folder / "model" / "train.json").is_file():
        raise WattbitError(f"there is no {folder}/model; run benchmarks/fpga_engines.py first, it trains the models")
    return folder


def reliability(subject: TaskSubject, labels: Sequence[int]) -> dict[str, float]:
    """Correlation of each form of the damage between halves of the sentences, the mean over WIDTHS below 8 bit."""
    wanted = torch.tensor(labels)
    before = subject.log_chances(None)
    found = []
    for bits in [b for b in WIDTHS if b < 8]:
        rows = []
        for expert in subject.learner.config.expert_ids:
            after = subject.alone(expert, bits)
            rise = F.nll_loss(after, wanted, reduction="none") - F.nll_loss(before, wanted, reduction="none")
            wrong = (before.argmax(dim=1) == wanted).float() - (after.argmax(dim=1) == wanted).float()
            rows.append(torch.stack([subject.divergence(before, after), rise, wrong]))
        halves = [torch.stack(rows)[:, :, start::2].double().mean(dim=2).numpy() for start in (0, 1)]  # [N, form]
        found.append([correlation(halves[0][:, form], halves[1][:, form]) for form in range(len(FORMS))])
    return dict(zip(FORMS, np.mean(found, axis=0).tolist(), strict=True))


def correlation(x: Floats, y: Floats) -> float:
    """0 where one says the same of all experts, as the fall of the accuracy may."""
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) and np.ptp(y) else 0.0


def read(source: str, seed: int, root: Path) -> dict[str, Any]:
    """One task on one model; kept in the runs folder."""
    task = read_task(source)
    folder = trained(seed, root)
    given = [asdict(task), seed, sha256_file(folder / "model" / "float.safetensors")]
    kept = cells.cell(root, __file__, given, "policy", "models")
    if kept.exists():
        return dict(read_json(kept))
    learner = MoELearner.open(folder / "data", folder / "model")
    torch.set_num_threads(1)
    subject = TaskSubject(learner, task, load_vocabulary(folder / "data"))
    text = learner.stats(WIDTHS)
    of_task = subject.stats(text)
    labels = [task.train.labels[i] for i in subject.spare]
    chosen = {OURS: allocated(of_task, learner, 0), "text's table": allocated(text, learner, 0)}
    chosen |= {"random": allocated(text, learner, seed, drawn=True)}
    eight = Allocation.of(dict.fromkeys(learner.config.expert_ids, 8))
    chosen["uniform 8 bit"] = eight
    found = {
        "reliability": reliability(subject, labels),
        "scores": {name: subject.score(widths) for name, widths in (chosen | {"float": None}).items()},
        "about": subject.to_json(),
    }
    subject.texts = list(task.dev.texts)
    float_model = subject.log_chances(None)
    found["moved"] = {
        name: subject.divergence(float_model, subject.log_chances(learner.quantized_experts(widths))).mean().item()
        for name, widths in chosen.items()
    }
    write_json(kept, found)
    click.echo(f"{task.name}, seed {seed}: {found}", err=True)
    return found


def allocated(stats: Sequence[ExpertStats], learner: MoELearner, seed: int, drawn: bool = False) -> Allocation:
    """The exact optimum of a table, or a random allocation of the budget."""
    load = Workload(1, learner.config.top_k, tuple((s.expert, s.frequency) for s in stats))
    problem = Problem(smoothed(stats), Free(), load, WIDTHS, budget_bits=BUDGET, latency_nats=0.0)
    return problem.allocation(random_allocation(problem, seed) if drawn else solve(problem))


def compare(case: str, metric: str, ours: Sequence[float], peer: str, theirs: Sequence[float]) -> Row:
    means, stds = (fmean(ours), fmean(theirs)), (stdev(ours), stdev(theirs))
    p = None if np.allclose(ours, theirs, rtol=0, atol=1e-9) else float(ttest_rel(ours, theirs).pvalue)
    ratio = means[1] / means[0] if metric == MOVED else (1 + means[0]) / (1 + means[1])
    return Row(case, metric, means[0], stds[0], means[1], stds[1], peer, ratio, None, "measured", SEEDS, p)


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="The first task alone.")
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
@click.option(
    "--runs", "root", default=RUNS, type=click.Path(path_type=Path), help="Folder of models and what is done."
)
@click.option("--task", "tasks", multiple=True, required=True, help="A folder or glue/TASK; repeatable.")
def main(quick: bool, path: Path | None, root: Path, tasks: tuple[str, ...]) -> None:
    rows: list[Row] = []
    for source in tasks[:1] if quick else tasks:
        found = [read(source, seed, root) for seed in SEEDS]
        about = found[0]["about"]
        case = f"{about['task']}, E=16, {BUDGET} bits"
        added = []
        for peer in FORMS[1:]:
            ours, theirs = ([one["reliability"][form] for one in found] for form in (FORMS[0], peer))
            added.append(compare(case, "reliability of the divergence's damage", ours, peer, theirs))
        for peer in PEERS:
            ours, theirs = ([one["scores"][name] for one in found] for name in (OURS, peer))
            added.append(compare(case, f"{about['metric']}, {OURS}", ours, peer, theirs))
        for peer in PEERS[:-1]:
            ours, theirs = ([one["moved"][name] for one in found] for name in (OURS, peer))
            added.append(compare(case, MOVED, ours, peer, theirs))
        show(added)
        rows += added
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
