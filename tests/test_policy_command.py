"""`wattbit search` with options: another search beside the run's own, which keeps its limits, resumes and is reused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click import BadParameter
from click.testing import CliRunner

from tests.test_eval_tasks import write_sst
from wattbit.cli import main
from wattbit.commands import search as command
from wattbit.commands.search import both
from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.hls.meter import ModelledMeter
from wattbit.metering import search_meter
from wattbit.pipeline import expert_stats, model_config, workload
from wattbit.plan import Allocation, Cost, Placement, Precision, Workload
from wattbit.policy.cost.calibration import Calibration, Errors, Origin
from wattbit.policy.cost.cores import CoresDemand
from wattbit.policy.cost.fitting import Fitted
from wattbit.policy.cost.fpga import CYCLE, LAUNCH
from wattbit.presets import run_config
from wattbit.report import significant
from wattbit.run import Run
from wattbit.tvm_schedules.host_meter import routing

ERRORS = Errors(5, 0.02, 0.02, 0.04, 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with statistics."""
    run = Run.create(tmp_path_factory.mktemp("search"), run_config("tiny", None, "virtual-z2", 0))
    result = CliRunner().invoke(main, ["stats", "--run", str(run.folder)])
    assert result.exit_code == 0, result.output
    assert "(measured); 8 experts: " in result.stdout and result.stdout.count("\n") == 1
    return run.folder


def look(folder: Path, *options: str) -> "dict[str, object]":
    result = CliRunner().invoke(main, ["search", "--run", str(folder), "--json", *options])
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def test_limits_are_kept(folder: Path) -> None:
    found = look(folder, "--max-perplexity-rise", "1%", "--minimise", "latency")
    assert found["perplexity_rise"] <= 0.01 and found["latency"] <= 1  # type: ignore[operator]
    quick = look(folder, "--max-latency", "1.0", "--algorithm", "a2c")
    assert quick["latency"] <= 1.0  # type: ignore[operator]
    assert read_json(Path(str(quick["folder"])) / "search.json") == quick
    assert Allocation.from_json(quick["allocation"]).mean_bits <= 4  # type: ignore[arg-type]


def test_a_policy_is_saved_and_serves_another_budget(folder: Path) -> None:
    first = look(folder, "--seed", "1")
    policy = Path(str(first["folder"])) / "policy.safetensors"
    again = look(folder, "--policy", str(policy), "--budget", "3")
    assert again["mean_bits"] <= 3  # type: ignore[operator]
    assert not (Path(str(again["folder"])) / "policy.safetensors").exists()


def test_statistics_of_another_model_are_refused(folder: Path) -> None:
    path = folder / "stats" / "stats.json"
    kept = path.read_text()
    try:
        path.write_text(kept.replace('"L1E3"', '"L1E9"'))  # as long, so that its stage counts as done
        result = CliRunner().invoke(main, ["search", "--run", str(folder), "--seed", "8"])
    finally:
        path.write_text(kept)
    assert result.exit_code == 1
    assert "stats.json is of another model: only one of them has L1E3; run `wattbit stats`" in " ".join(
        result.stderr.split()
    )


def test_the_runs_own_search_keeps_its_policy(folder: Path) -> None:
    result = CliRunner().invoke(main, ["search", "--run", str(folder)])
    assert result.exit_code == 0, result.output
    said = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert said.keys() >= {"uniform8", "exact", "random", "dmpq"}
    assert "8.00 bits" in said["uniform8"] and said["dmpq"].endswith("ms/token (modelled)")
    record = read_json(folder / "search" / "search.json")["best"]["cost"]
    assert f"{significant(record['latency_s'])} ms/token" in said["dmpq"]  # of 1000 tokens: s are ms a token
    assert look(folder, "--policy", str(folder / "search" / "policy.safetensors"))["mean_bits"]


def test_a_meter_that_fails_stops_a_search_that_then_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    whole = ModelledMeter.cost

    def cost(self: ModelledMeter, allocation: Allocation, workload: Workload) -> Cost:
        calls.append(allocation.digest)
        if 30 < len(calls) <= 33:
            raise WattbitError("the board does not answer")
        return whole(self, allocation, workload)

    monkeypatch.setattr(ModelledMeter, "cost", cost)
    monkeypatch.setattr("wattbit.policy.recorded.PAUSE_S", 0.0)
    options = ["search", "--run", str(folder), "--seed", "5"]
    result = CliRunner().invoke(main, options)
    assert result.exit_code == 1
    assert "the meter failed 3 times (the board does not answer); 30 prices are kept" in " ".join(result.stderr.split())
    assert CliRunner().invoke(main, options).exit_code == 0
    assert len(set(calls)) == len(calls) - 3  # of the four attempts at the one that failed, the last was answered


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--minimise", "latency"), "needs a limit"),
        (("--budget", "1"), "below the narrowest width, 2, the smallest feasible"),
        (("--max-latency", "0.01"), "the closest has latency"),
        (("--minimise", "energy", "--max-perplexity-rise", "1%"), "prices no energy"),
        (("--budget", "nan"), "a mean weight width in bits, for instance 3.5, not nan"),
        (("--policy", "none.safetensors"), "holds no policy"),
        (("--calibration", "none.json"), "there is no calibration none.json; make one with"),
        (("--policy", "none.safetensors", "--max-latency", "0.5"), "without --policy"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder: Path, options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, ["search", "--run", str(folder), *options])
    assert result.exit_code == 1
    assert words in result.stderr.strip().splitlines()[-1]


def test_options_are_checked_before_the_stages(tmp_path: Path) -> None:
    run = Run.create(tmp_path, run_config("tiny", None, "virtual-z2", 0))
    for options, words in (
        (("--minimise", "latency"), "needs a limit"),
        (("--calibration", "none.json"), "there is no calibration none.json"),
        (("--policy", "none.safetensors"), "holds no policy"),
        (("--host", "x"), "give both"),
    ):
        result = CliRunner().invoke(main, ["search", "--run", str(run.folder), *options])
        assert result.exit_code == 1 and words in result.stderr
    assert [path.name for path in run.folder.iterdir()] == ["config.json"]


def test_a_finished_search_is_not_redone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = look(folder, "--seed", "3")
    whole, policy = CliRunner().invoke(main, ["search", "--run", str(folder), "--seed", "3"]), first["folder"]
    assert "search: done already" in whole.stderr
    Path(str(policy), "policy.safetensors").unlink()
    assert look(folder, "--seed", "3") == first  # for a file is missing
    assert Path(str(policy), "policy.safetensors").is_file()
    monkeypatch.setattr("wattbit.run.code_digest", lambda part: "other")
    assert command.finished(Run.open(folder), command.Asked(seed=3), Path(str(policy))) is None


def test_a_search_preserves_a_task(folder: Path, tmp_path: Path) -> None:
    glue = write_sst(tmp_path / "sst2", 60)
    found: Any = look(folder, "--task", str(glue))
    assert found["perplexity_rise"] is None and found["mean_bits"] <= 4
    assert set(found["task"]["scores"]) == {"float", "uniform 8 bit", "chosen"}
    assert found["task"]["damage_nats"] >= 0 and found["task"]["task"] == "sst2"
    (kept,) = (folder / "searches").glob("task-*.json")
    text, task = read_json(folder / "stats" / "stats.json"), read_json(kept)
    assert [one["damage"] for one in text["experts"]] != [one["damage"] for one in task["experts"]]
    made = kept.stat().st_mtime_ns
    assert look(folder, "--task", str(glue)) == found and kept.stat().st_mtime_ns == made, (
        "its table is not measured twice"
    )
    look(folder, "--task", str(glue), "--seed", "4")
    assert kept.stat().st_mtime_ns == made, "nor for another search"
    shutil.copytree(write_sst(tmp_path / "other", 80), glue, dirs_exist_ok=True)
    assert look(folder, "--task", str(glue))["task"] != found["task"]
    assert len(list((folder / "searches").glob("task-*.json"))) == 2, "other sentences at that path have their own"
    for more, words in (
        (["--task", ""], "--task '' names no task"),
        (["--task", str(tmp_path / "none")], "is neither a folder nor a GLUE task with classes"),
        (["--task", str(glue), "--retraining", "3"], "--task counts in perplexity's place"),
        (["--task", str(glue), "--max-perplexity-rise", "1%"], "--task counts in perplexity's place"),
    ):
        refused = CliRunner().invoke(main, ["search", "--run", str(folder), *more])
        assert refused.exit_code == 1
        assert words in refused.stderr.strip().splitlines()[-1]


def calibration(kind: str, run: Run, names: tuple[str, ...], theta: list[float], **settings: object) -> Calibration:
    """A made-up calibration of the run's experts, as `wattbit calibrate` writes them."""
    shape = model_config(run).shape
    more = {"shape": [shape.d_model, shape.d_hidden], "target": run.config.settings["target"], **settings}
    fitted = Fitted(names, np.array(theta), np.zeros((len(names), len(names))), 0.02, 40)
    return Calibration(Origin(kind, "host", "m", "t", more), "measured", "2026-01-01", fitted, None, ERRORS, None)


def test_calibrated_engines_and_cores_are_chosen_between(folder: Path, tmp_path: Path) -> None:
    run = Run.open(folder)
    sizes = {str(bits): bits * 128 for bits in (4, 8)}
    cores = CoresDemand(model_config(run).shape, {int(b): s for b, s in sizes.items()}, routing, "arm")
    rates = [1e-9] * len(cores.names)
    calibration("fpga", run, (CYCLE, LAUNCH), [1e-8, 1e-7]).save(tmp_path / "fpga.json")
    calibration("cores", run, cores.names, rates, weight_bytes=sizes).save(tmp_path / "cores.json")
    options = ("--calibration", str(tmp_path / "fpga.json"), "--calibration", str(tmp_path / "cores.json"))
    found = look(folder, *options)
    placed = Allocation.from_json(found["allocation"]).placements  # type: ignore[arg-type]
    assert {p.engine for p in placed} <= {"fpga", "arm"} and found["provenance"] == "modelled"
    assert all(p.precision.weight_bits in (4, 8) for p in placed if p.engine == "arm")
    model = both(Calibration.load(tmp_path / "fpga.json"), Calibration.load(tmp_path / "cores.json"), cores.shape)
    experts = [s.expert for s in expert_stats(run)]
    uniform = [Allocation.of(dict.fromkeys(experts, 4), 8, engine) for engine in ("fpga", "arm")]
    alone = [model.cost(allocation, workload(run)).latency_s for allocation in uniform]
    assert model.joules is None, "neither was weighed"
    made = []
    of_engines = ("byte, J", "product, J", "bit product, J")
    for kind, static_w, names in (("fpga", 2.0, of_engines), ("cores", 3.0, cores.energy_names)):
        covariance = np.diag([0.01, *[0.0] * len(names)])
        theta = np.array([static_w, *[1e-12] * len(names)])
        joules = Fitted(("static power, W", *names), theta, covariance, 0.02, 9)
        made.append(replace(Calibration.load(tmp_path / f"{kind}.json"), joules=joules))
    weighed = both(*made, cores.shape)
    for allocation in uniform:
        said = weighed.predict(allocation, workload(run))
        moved = float(weighed.demand.energy(allocation, workload(run)).sum())
        assert said.cost.energy_j == pytest.approx(4.0 * said.cost.latency_s + 1e-12 * moved), "between 3 and 5 W"
        assert said.energy_relative is not None and said.energy_relative > 0.1
    half = Allocation(tuple(Placement(e, "arm" if e.expert % 2 else "fpga", Precision(4)) for e in experts))
    assert 0 < model.cost(half, workload(run)).latency_s < max(alone)
    result = CliRunner().invoke(main, ["search", "--run", str(folder), *options[2:]])
    assert result.exit_code == 1 and "no costs of 2 bits were calibrated" in result.stderr
    result = CliRunner().invoke(main, ["search", "--run", str(folder), *options[:2], *options[:2]])
    assert result.exit_code == 1 and "one of engines" in result.stderr
    result = CliRunner().invoke(main, ["search", "--run", str(folder), "--measure", "5"])
    assert result.exit_code == 1 and "--measure needs one --calibration" in result.stderr


def test_a_share_is_a_percentage_or_a_number() -> None:
    share = command.Share()
    assert share.convert("1%", None, None) == share.convert("0.01", None, None) == 0.01
    for word in ("one", "nan", "inf", "-2", "-1%", "%"):
        with pytest.raises(BadParameter, match=f"'{word}' is no share"):
            share.convert(word, None, None)


def test_an_unsure_calibration_is_searched_at_the_upper_ends_of_its_intervals(folder: Path, tmp_path: Path) -> None:
    run = Run.open(folder)
    shape, experts = model_config(run).shape, [s.expert for s in expert_stats(run)]
    sizes = {bits: bits * 128 for bits in (2, 4, 8)}
    cores = CoresDemand(shape, sizes, routing)
    made = calibration(
        "cores", run, cores.names, [1e-9] * len(cores.names), weight_bytes={str(b): n for b, n in sizes.items()}
    )
    prices = {}
    for name, median in (("sure", 0.03), ("unsure", 0.2)):
        path = tmp_path / f"{name}.json"
        replace(made, latency_errors=Errors(5, median, median, 0.4, 1.0)).save(path)
        with search_meter(path, None, shape, len(experts), tmp_path / "log.jsonl", Display()) as meter:
            prices[name] = meter.cost(Allocation.of(dict.fromkeys(experts, 4)), workload(run))
    assert prices["unsure"].latency_s > 1.01 * prices["sure"].latency_s
    found = CliRunner().invoke(main, ["search", "--run", str(folder), "--calibration", str(tmp_path / "unsure.json")])
    assert found.exit_code == 0, found.output
    assert "off by 20% on held-out prices: searched at the upper ends" in " ".join(found.stderr.split())
    hosts = ["search", "--run", str(folder), "--host", "board"]
    for more, words in (
        ([], "give both"),
        (["--measure", "4", "--calibration", str(tmp_path / "sure.json")], "this machine's cores"),
    ):
        refused = CliRunner().invoke(main, [*hosts, *more])
        assert refused.exit_code == 1 and words in refused.stderr
