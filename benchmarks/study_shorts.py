"""Studies of `benchmarks/methods.py` as results/methods.studies.json keeps them, joined and priced."""

from collections.abc import Sequence
from pathlib import Path

from study_jobs import BOARD, TOKENS, WIDTHS, Record
from study_records import statistics

from wattbit.board.targets import load
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import read_json
from wattbit.metering import virtual_meter
from wattbit.models.config import ModelConfig
from wattbit.plan import Allocation, Workload
from wattbit.tvm_schedules.host_meter import host_meter


def routed(record: Record) -> tuple[ModelConfig, Workload]:
    """A short study's model, and what its measured routing asks of the experts."""
    model = ModelConfig.from_json(record["train"]["model"])
    frequency = tuple(zip(model.expert_ids, record["frequencies"], strict=True))
    return model, Workload(TOKENS, model.top_k, frequency)


def price(study: Record) -> None:
    """Add modelled milliseconds and millijoules a token of the experts on the FPGA to a short study's allocations; None
    where it cannot hold them."""
    model, load_of = routed(study)
    meter = virtual_meter(model.shape, load(BOARD).target)
    prices: dict[str, dict[str, float | None]] = {}
    for one in [*study["recipes"].values(), *study["tuned"].values()]:
        if "refused" in one:
            continue
        bits = one["bits"]
        if bits not in prices:
            try:
                cost = meter.cost(Allocation.of(dict(zip(model.expert_ids, map(int, bits), strict=True))), load_of)
            except InfeasibleError:
                prices[bits] = {"ms_per_token": None, "mj_per_token": None}
            else:
                joules = None if cost.energy_j is None else 1e3 * cost.energy_j / TOKENS
                prices[bits] = {"ms_per_token": 1e3 * cost.latency_s / TOKENS, "mj_per_token": joules}
        one.update(prices[bits])


def shortened(record: Record) -> Record:
    """A study for the results: allocations as widths in the experts' order, no training record, frequencies alone of
    the statistics."""
    names = ("preset", "seed", "made_with", "made_with_tasks", "float", "glue", "seconds", "stats_s")
    found: Record = {name: record[name] for name in names if name in record}
    train = record["train"]
    found["train"] = {
        name: train[name]
        for name in ("data", "model", "train", "valid_perplexity", "sha256", "device", "torch", "loss")
        if name in train
    }
    found["frequencies"] = [one.frequency for one in statistics(record)]
    for part, key in (("recipes", "recipe"), ("tuned", "allocations")):
        found[part] = {}
        for name, one in sorted(record[part].items()):
            if "refused" in one:
                found[part][name] = one
                continue
            last = one[key]["allocation"] if key == "recipe" else one[key][-1]
            allocation = Allocation.from_json(last)
            kept = {k: v for k, v in one.items() if k != key}
            bits = "".join(str(p.precision.weight_bits) for p in allocation.placements)
            found[part][name] = kept | {"bits": bits, "mean_bits": allocation.mean_bits}
    return found


def kept_studies(path: Path) -> dict[str, list[Record]]:
    """Short studies by name, as `write_tables` left them."""
    found = read_json(path)
    try:
        known = all("frequencies" in one for records in found.values() for one in records)
    except (AttributeError, TypeError):
        known = False
    if not known:
        raise WattbitError(f"{path} holds no studies; give results/methods.studies.json")
    return dict(found)


def joined(kept: Sequence[Record], later: Sequence[Record]) -> list[Record]:
    """Kept short studies with what later ones of the same models found. WattbitError for other models or settings."""
    both = [(one, more) for one in kept for more in later if one["seed"] == more["seed"]]
    if not len(both) == len(kept) == len(later):
        seeds = [[one["seed"] for one in records] for records in (kept, later)]
        raise WattbitError(
            f"kept studies of seeds {seeds[0]} do not go on with seeds {seeds[1]}; leave one of them out"
        )
    for one, more in both:
        had, has = (r["made_with"] | {"weights": r["train"]["sha256"]} for r in (one, more))
        other = [f"{name} {had.get(name)}, not {has[name]}" for name in has if had.get(name) != has[name]]
        if other:
            what = f"the kept study of {one['preset']}, seed {one['seed']}, was made with {other[0]}"
            raise WattbitError(f"{what}; leave one of them out")
    found = []
    for one, more in both:
        parts = {part: one[part] | more[part] for part in ("recipes", "tuned")}
        splits = one["glue"] | more["glue"]
        glue = {split: one["glue"].get(split, {}) | more["glue"].get(split, {}) for split in splits}
        found.append(one | parts | {"glue": glue, "seconds": more["seconds"] | one["seconds"]})
    return found


def on_host(record: Record) -> None:
    """Add measured milliseconds a token of the experts' products on this machine, one thread, to a short study."""
    model = ModelConfig.from_json(record["train"]["model"])
    load_of = Workload(TOKENS, model.top_k, tuple((e, 1 / model.experts) for e in model.expert_ids))
    times: dict[str, float] = {}
    with host_meter(model.shape, WIDTHS, len(model.expert_ids)) as meter:
        for one in [*record["recipes"].values(), *record["tuned"].values()]:
            if "refused" in one:
                continue
            if one["bits"] not in times:
                widths = dict(zip(model.expert_ids, map(int, one["bits"]), strict=True))
                cost = meter.cost(Allocation.of(widths, engine="host"), load_of)
                times[one["bits"]] = 1e3 * cost.latency_s / TOKENS
            one["host_ms_per_token"] = times[one["bits"]]


def on_rtl(record: Record, folder: Path, workers: int) -> None:
    """Add milliseconds and millijoules a token of the experts on the simulated FPGA to a short study that `price` has
    seen; none where the chip cannot hold them."""
    from study_rtl import simulations  # a GPU machine has no Verilator

    model, load_of = routed(record)
    fitting = [
        one for one in [*record["recipes"].values(), *record["tuned"].values()] if one.get("ms_per_token") is not None
    ]
    found = simulations(model, load_of, folder, (one["bits"] for one in fitting), workers)
    for one in fitting:
        one |= {"rtl_ms_per_token": found[one["bits"]].ms, "rtl_mj_per_token": found[one["bits"]].mj}
