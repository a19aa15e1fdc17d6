"""Co-training is fair to every control, and an interruption at any step changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.policy_fakes import FakeLearner, SharedChipMeter, make_stats, make_workload
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.plan import Allocation
from wattbit.policy.cotrain import CotrainSettings, cotrain
from wattbit.policy.search import SearchResult, SearchSettings, search

STATS = make_stats(4, noise=0.0)
SETTINGS = CotrainSettings(search=SearchSettings(iterations=4, seeds=(0, 1)), rounds=2, steps=5, seed=3)


def run(learner: FakeLearner, out: Path, **more: Any) -> dict[str, Any]:
    return cotrain(learner, SharedChipMeter(), make_workload(STATS), SETTINGS, out, **more)


def test_every_method_is_fine_tuned_alike(tmp_path: Path) -> None:
    learner = FakeLearner(STATS)
    seen: list[tuple[int, int]] = []
    result = run(learner, tmp_path, progress=lambda what, done, total: seen.append((done, total)))
    finetunes = [call for call in learner.calls if call.startswith("finetune")]
    chains = 8  # uniform8, uniform4, linear, exact, dmpq and three random ones
    assert sorted(finetunes) == ["finetune 5 3"] * chains + ["finetune 5 4"] * chains
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert set(result["methods"]) == {"uniform8", "uniform4", "linear", "random", "exact", "dmpq"}
    for name, method in result["methods"].items():
        assert method["fine_tuning_steps"] == 10
        assert len(method["runs"]) == (3 if name == "random" else 1)
        assert (method["perplexity_after"]["std"] is None) == (name != "random")
        for one in method["runs"]:
            allocation = Allocation.from_json(one["allocation"])
            assert one["perplexity_before"] == FakeLearner(STATS).perplexity(allocation)
            if name != "dmpq":  # its widths may change between rounds
                fresh = FakeLearner(STATS)
                fresh.finetune(allocation, 5, 3)
                fresh.finetune(allocation, 5, 4)
                assert one["perplexity_after"] == pytest.approx(fresh.perplexity(allocation))


def test_rounds_and_files_agree(tmp_path: Path) -> None:
    learner = FakeLearner(STATS)
    result = run(learner, tmp_path)
    assert read_json(tmp_path / "cotrain.json") == result
    final = Allocation.from_json(read_json(tmp_path / "allocation.json"))
    first, last = result["rounds"]
    assert first["damage"]["observed"] == pytest.approx(first["damage"]["predicted"])  # the fake's law
    assert first["perplexity_before"] > first["perplexity_after"]
    assert Allocation.from_json(last["allocation"]) == final
    dmpq = result["methods"]["dmpq"]
    assert dmpq["perplexity_after"]["mean"] == last["perplexity_after"]
    assert dmpq["perplexity_before"]["mean"] == FakeLearner(STATS).perplexity(final)
    learner.load(tmp_path / "model.safetensors")
    assert learner.perplexity(final) == last["perplexity_after"]


def test_weights_may_be_trained_at_widths_drawn_from_the_policy(tmp_path: Path) -> None:
    settings = replace(SETTINGS, search=replace(SETTINGS.search, draws=6), widths="sampled")
    learner = FakeLearner(STATS)
    result = cotrain(learner, SharedChipMeter(), make_workload(STATS), settings, tmp_path)
    assert [call for call in learner.calls if "over" in call] == ["finetune 5 3 over 7", "finetune 5 4 over 7"]
    found = SearchResult.from_json(read_json(tmp_path / "steps" / "search-1.json"))
    assert len(found.draws) == 6
    assert all(allocation.mean_bits <= 4 for allocation in found.draws)
    assert CotrainSettings.from_json(settings.to_json()) == settings
    assert result["methods"]["exact"]["fine_tuning_steps"] == 10
    with pytest.raises(WattbitError, match=r"needs search.draws above 0"):
        replace(SETTINGS, widths="sampled")
    with pytest.raises(WattbitError, match="widths must be one of best, expected, sampled, not 'all'"):
        replace(SETTINGS, widths="all")  # type: ignore[arg-type]


def test_weights_may_be_trained_at_the_policys_expectation(tmp_path: Path) -> None:
    result = cotrain(
        FakeLearner(STATS), SharedChipMeter(), make_workload(STATS), replace(SETTINGS, widths="expected"), tmp_path
    )
    for turn, record in enumerate(result["rounds"]):
        found = SearchResult.from_json(read_json(tmp_path / "steps" / f"search-{turn}.json"))
        assert record["allocation"] == found.expected.allocation.to_json()
        assert record["reward"] == found.expected.reward <= found.best.reward
    assert read_json(tmp_path / "allocation.json") == result["rounds"][-1]["allocation"]


def test_the_policy_is_told_what_the_rounds_before_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Any]] = []

    def spy(*arguments: Any, history: Any) -> SearchResult:
        seen.append([*history, arguments[0]])
        return search(*arguments, history=history)

    monkeypatch.setattr("wattbit.policy.cotrain.search", spy)
    run(FakeLearner(STATS), tmp_path)
    assert [len(tables) for tables in seen] == [1, 2]
    assert list(seen[1][0]) == list(STATS) == list(seen[0][0]) and seen[1][1] != seen[1][0]


def test_interruption_anywhere_changes_nothing_and_redoes_nothing(tmp_path: Path) -> None:
    whole = FakeLearner(STATS)
    expected = run(whole, tmp_path / "whole")
    work = [call for call in whole.calls if call.startswith(("finetune", "stats"))]
    for stop in range(0, len(whole.calls), 5):
        out = tmp_path / f"stopped-{stop}"
        stopped = FakeLearner(STATS)
        stopped.interrupt = stop
        with pytest.raises(KeyboardInterrupt):
            run(stopped, out)
        assert not (out / "cotrain.json").exists()
        resumed = FakeLearner(STATS)
        assert run(resumed, out) == expected
        # the last call was cut off, or the weights that it made were not written
        done = stopped.calls[:-2] if stopped.calls[-1] == "save" else stopped.calls[:-1]
        both = [call for call in done + resumed.calls if call.startswith(("finetune", "stats"))]
        assert sorted(both) == sorted(work)
    again = FakeLearner(STATS)
    assert run(again, tmp_path / "whole") == expected
    assert not [call for call in again.calls if call.startswith(("finetune", "stats"))]


def test_first_rounds_statistics_and_search_may_come_from_elsewhere(tmp_path: Path) -> None:
    searched = search(STATS, SharedChipMeter(), make_workload(STATS), SETTINGS.search)
    learner = FakeLearner(STATS)
    given = run(learner, tmp_path / "given", stats=STATS, searched=searched)
    assert learner.calls.count("stats") == 1
    assert given == run(FakeLearner(STATS), tmp_path / "own")
    other = search(STATS, SharedChipMeter(), make_workload(STATS), SearchSettings(iterations=2))
    with pytest.raises(WattbitError, match="other settings"):
        run(FakeLearner(STATS), tmp_path / "other", searched=other)


def test_a_folder_of_other_settings_or_weights_is_refused(tmp_path: Path) -> None:
    run(FakeLearner(STATS), tmp_path)
    with pytest.raises(WattbitError, match="other settings"):
        cotrain(FakeLearner(STATS), SharedChipMeter(), make_workload(STATS), CotrainSettings(steps=7), tmp_path)
    with pytest.raises(WattbitError, match="open the model it began from"):
        run(FakeLearner(STATS, floor=3.5), tmp_path)


def test_settings_survive_json_and_name_what_is_wrong() -> None:
    assert CotrainSettings.from_json(SETTINGS.to_json()) == SETTINGS
    with pytest.raises(WattbitError, match="rounds and steps must be at least 1, not 0 and 20"):
        CotrainSettings(rounds=0)
