"""What the demo's models bear and what its chip gives: uniform widths, and the policy at a high price of time.

    python benchmarks/first_path_widths.py [--quick] [--steps N ...] [--json FILE]

Every allocation is fine-tuned as many steps as static 8 bit, from the same float weights on the same batches.
Perplexity is measured; memory and cycles, the planner's expectation over many batches, are modelled. Ratios are those
of static 8 bit to the allocation, above 1 where the allocation is better. The runs are `benchmarks/first_path.py`'s.

`best engines`: what no planner could beat with up to four engines of one width, by trying all that fit by the same
resource model, each as busy as it is fast in every launch, and the shell's port.

`any batch, even routing`: the planner's cycles for models with more experts a layer, whose weights no longer fit on the
chip at 8 bits; nothing was trained for them.
"""

from dataclasses import replace
from itertools import combinations_with_replacement
from pathlib import Path
from statistics import fmean

import click
from rows import Benchmark, Row, mean_std, show, write

from wattbit.hls.cycles import RESULT_GAP, overhead
from wattbit.hls.datapaths import chip_of
from wattbit.models.learner import MoELearner
from wattbit.perform import RUNS, perform
from wattbit.pipeline import expert_stats, learner, meter, model_config, target, workload
from wattbit.plan import Allocation, Precision, Provenance
from wattbit.policy.search import SearchSettings, search
from wattbit.presets import run_config
from wattbit.run import Run

WIDTHS = (8, 4, 3, 2)
HASTY_NATS = 1.2  # the price of the whole latency at which the policy takes 2 bits for half of the experts
ENGINES = 4  # at most, of the best engines
SLOWEST = 256  # cycles a vector of an engine that is worth its shell
EXPERTS = (16, 24, 32)  # a layer, of the models that are planned alone
ROUNDS = 2  # the rate falls to zero in each, as in co-training
METRICS: tuple[tuple[str, Provenance, float], ...] = (
    ("perplexity", "measured", 1 / 1.01),
    ("expert memory, bytes", "modelled", 1 / 0.6),
    ("cycles a token, any batch", "modelled", 2.0),
)
Figures = tuple[float, float, float]
"""One for each of METRICS."""


def allocations(run: Run) -> dict[str, Allocation]:
    """What is compared, by name."""
    experts = model_config(run).expert_ids
    found = {f"uniform {bits} bit": Allocation.of(dict.fromkeys(experts, bits), 8, "fpga") for bits in WIDTHS}
    settings = SearchSettings.from_json(run.config.settings["cotrain"]["search"])
    hasty = replace(settings, latency_nats=HASTY_NATS, seeds=settings.seeds[:1])
    best = search(expert_stats(run), meter(run), workload(run), hasty).best.allocation
    return found | {f"policy, {HASTY_NATS} nats": best}


def best_engines(run: Run, bits: int) -> float:
    """Cycles a token of the fastest engines of one width that the chip holds, perfectly shared in every launch."""
    model, load = model_config(run), workload(run)
    chip, fastest = chip_of(model.shape, target(run)), 0.0
    for number in range(1, ENGINES + 1):
        experts = -(-model.experts * model.layers // number)
        options = [o for o in chip.chain(Precision(bits), "chip", experts) if o.cycles <= SLOWEST]
        for engines in combinations_with_replacement(options, number):
            rate = sum(1 / engine.cycles for engine in engines)  # vectors a cycle
            if rate > fastest and chip.holds([engine.counts for engine in engines], 0):
                fastest = rate
    words = model.shape.d_model // 8
    vector = max(1 / fastest, words + RESULT_GAP)  # cycles, of the engines or of the port that writes results
    return model.layers * (model.top_k * vector + overhead(words, chip.port) / load.batch)


def bounds(case: str, run: Run) -> list[Row]:
    """Rows of each width's best engines against those of the first."""
    static, metric, rows = best_engines(run, WIDTHS[0]), "cycles a token, best engines", []
    for bits in WIDTHS[1:]:
        label, peer, ours = f"{case}, uniform {bits} bit", f"uniform {WIDTHS[0]} bit", best_engines(run, bits)
        rows.append(Row(label, metric, ours, None, static, None, peer, static / ours, 2.0, "modelled", ()))
    return rows


def growth(run: Run) -> list[Row]:
    """Rows of each width against the first for more experts a layer, all of them equally often wanted."""
    model, load, rows = model_config(run), workload(run), []
    for experts in EXPERTS:
        ids = replace(model, experts=experts).expert_ids
        even = replace(load, frequency=tuple((expert, model.top_k / experts) for expert in ids))
        costs = {bits: meter(run).cost(Allocation.of(dict.fromkeys(ids, bits)), even) for bits in WIDTHS}
        clock_hz = run.config.settings["target"]["clock_mhz"] * 1e6
        cycles = {bits: cost.latency_s * clock_hz / load.tokens for bits, cost in costs.items()}
        peer = cycles[WIDTHS[0]]
        for bits in WIDTHS[1:]:
            label, metric = f"{experts} experts a layer, uniform {bits} bit", "cycles a token, any batch, even routing"
            name, ratio = f"uniform {WIDTHS[0]} bit", peer / cycles[bits]
            rows.append(Row(label, metric, cycles[bits], None, peer, None, name, ratio, 2.0, "modelled", ()))
    return rows


def tuned(model: MoELearner, start: Path, allocation: Allocation, steps: int, seed: int) -> float:
    """Perplexity after fine-tuning from the weights at `start`."""
    model.load(start)
    for turn in range(ROUNDS):
        model.finetune(allocation, steps // ROUNDS, seed + turn)
    return model.perplexity(allocation)


def compare(case: str, seeds: tuple[int, ...], found: list[dict[str, Figures]]) -> list[Row]:
    """Rows of each allocation against the first; `found` by seed."""
    peer, *names = found[0]
    rows = []
    for name in names:
        for place, (metric, provenance, goal) in enumerate(METRICS):
            ours, theirs = ([one[which][place] for one in found] for which in (name, peer))
            label, ratio = f"{case}, {name}", fmean(theirs) / fmean(ours)
            rows.append(Row(label, metric, *mean_std(ours), *mean_std(theirs), peer, ratio, goal, provenance, seeds))
    return rows


@click.command(cls=Benchmark, help=__doc__)
@click.option("--quick", is_flag=True, help="One seed of the tiny preset, 6 steps: figures that mean nothing.")
@click.option(
    "--steps",
    type=click.IntRange(min=ROUNDS),
    multiple=True,
    default=(150,),
    show_default=True,
    help="Of fine-tuning; repeatable.",
)
@click.option("--json", "path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rows to this file.")
def main(quick: bool, steps: tuple[int, ...], path: Path | None) -> None:
    preset, seeds, steps = ("tiny", (0,), (6,)) if quick else ("demo", (0, 1, 2), steps)
    found: dict[int, list[dict[str, Figures]]] = {number: [] for number in steps}
    for seed in seeds:
        run = Run.create(RUNS, run_config(preset, None, "virtual-z2", seed))
        perform(run, "stats")
        model, start, chosen = learner(run), run.path("model", "float.safetensors"), allocations(run)
        for number, of_seed in found.items():
            figures: dict[str, Figures] = {}
            for name, allocation in chosen.items():
                cost = meter(run).cost(allocation, workload(run))
                cycles = cost.latency_s * run.config.settings["target"]["clock_mhz"] * 1e6 / workload(run).tokens
                perplexity = tuned(model, start, allocation, number, seed)
                figures[name] = (perplexity, cost.memory_bytes, cycles)
                click.echo(f"seed {seed}, {number} steps, {name}: {perplexity:.3f}, {cycles:.1f} cycles", err=True)
            of_seed.append(figures)
    rows = bounds(f"{preset} preset", run) + growth(run)
    for number, tables in found.items():
        rows += compare(f"{preset} preset, {number} steps", seeds, tables)
    for row in rows:
        show([row])
    if path:
        write(rows, path)


if __name__ == "__main__":
    main()
