"""`wattbit search` with options: another search beside the run's own, which keeps its limits, resumes and is reused."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from wattbit.cli import main
from wattbit.commands import search as command
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.hls.meter import ModelledMeter
from wattbit.plan import Allocation, Cost, Workload
from wattbit.presets import run_config
from wattbit.run import Run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run with statistics."""
    run = Run.create(tmp_path_factory.mktemp("search"), run_config("tiny", None, "virtual-z2", 0))
    result = CliRunner().invoke(main, ["stats", "--run", str(run.folder)])
    assert result.exit_code == 0, result.output
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


def test_the_runs_own_search_keeps_its_policy(folder: Path) -> None:
    result = CliRunner().invoke(main, ["search", "--run", str(folder)])
    assert result.exit_code == 0, result.output
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
        (("--policy", "none.safetensors"), "holds no policy"),
        (("--policy", "none.safetensors", "--max-latency", "0.5"), "without --policy"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder: Path, options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(main, ["search", "--run", str(folder), *options])
    assert result.exit_code == 1
    assert words in result.stderr.strip().splitlines()[-1]


def test_a_share_is_a_percentage_or_a_number() -> None:
    share = command.Share()
    assert share.convert("1%", None, None) == share.convert("0.01", None, None) == 0.01
