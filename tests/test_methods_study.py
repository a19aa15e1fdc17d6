"""What a study of benchmarks/methods.py keeps says how it was made, and does not mix with what was made otherwise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import study
from rows import Row, mean_std, show
from study_jobs import Settings, corpus_digest, task_digest
from study_records import Records

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json, write_text


@pytest.fixture(autouse=True)
def texts_as_they_are() -> None:
    for cached in (corpus_digest, task_digest):
        cached.cache_clear()


def settings(folder: Path, **changed: Any) -> Settings:
    if not (folder / "data").exists():
        corpus(folder, "tokens", "judged text")
    return replace(Settings("tiny", (0, 1), folder / "data", str(folder / "text"), (), folder), **changed)


def corpus(folder: Path, tokens: str, judging: str) -> None:
    write_json(folder / "data" / "data.json", {"digest": tokens})
    write_text(folder / "text" / "test.txt", judging)


def task(folder: Path, name: str, sentence: str) -> str:
    for split in ("train", "dev"):
        write_text(folder / name / f"{split}.tsv", f"sentence\tlabel\n{sentence}\t1\nbad\t0\n")
    return str(folder / name)


def test_a_study_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    records = Records(settings(tmp_path))
    records[1]["tuned"]["uniform8"] = {"mean_bits": 8.0}
    records.say("tuned")
    again = Records(settings(tmp_path, seconds=5.0))  # more time makes no other study
    assert again[1]["tuned"] == {"uniform8": {"mean_bits": 8.0}}
    assert again[0]["tuned"] == {}
    assert not again.finished


@pytest.mark.parametrize("changed", [{"steps": 7}, {"iterations": 7}, {"judged": 7}, {"glue_steps": 7}])
def test_other_settings_are_another_study(tmp_path: Path, changed: dict[str, int]) -> None:
    Records(settings(tmp_path)).say("float")
    with pytest.raises(WattbitError, match=rf"with {next(iter(changed))} \w+, not 7; give another --studies folder"):
        Records(settings(tmp_path, **changed))


@pytest.mark.parametrize("name", ["damage", "quantizer"])
def test_a_record_of_another_damage_is_refused(tmp_path: Path, name: str) -> None:
    """Also one that does not say, as records were before they did."""
    one = settings(tmp_path)
    Records(one).say("float")
    kept = read_json(one.file(0))
    write_json(one.file(0), kept | {"made_with": kept["made_with"] | {name: "rise of the loss"}})
    with pytest.raises(WattbitError, match=f"was made with {name} rise of the loss"):
        Records(one)
    write_json(one.file(0), {key: value for key, value in kept.items() if key != "made_with"})
    with pytest.raises(WattbitError, match="was made with corpus not said"):
        Records(one)


@pytest.mark.parametrize("other", [("other tokens", "judged text"), ("tokens", "other text")])
def test_another_corpus_is_another_study(tmp_path: Path, other: tuple[str, str]) -> None:
    Records(settings(tmp_path)).say("float")
    corpus(tmp_path, *other)
    corpus_digest.cache_clear()
    with pytest.raises(WattbitError, match="was made with corpus"):
        Records(settings(tmp_path))


def test_a_task_of_the_same_name_has_the_same_sentences(tmp_path: Path) -> None:
    """While a study may get more tasks."""
    first, second = task(tmp_path, "sst2", "good"), task(tmp_path, "cola", "fine")
    Records(settings(tmp_path, tasks=(first,))).say("tasks")
    Records(settings(tmp_path, tasks=(second,))).say("tasks")
    other = task(tmp_path / "other", "sst2", "excellent")
    with pytest.raises(WattbitError, match="was made with sst2"):
        Records(settings(tmp_path, tasks=(other,)))


def test_a_study_that_was_asked_for_more_is_not_finished(tmp_path: Path) -> None:
    source = task(tmp_path, "sst2", "good")
    first = settings(tmp_path, budgets=(2.5, 3.0), retrained=False)
    Records(first).end()
    assert Records(first).finished
    assert Records(replace(first, budgets=(3.0,))).finished
    for more in ({"budgets": (2.5, 3.0, 4.0)}, {"retrained": True}, {"tasks": (source,)}):
        assert not Records(replace(first, **more)).finished
    Records(replace(first, budgets=(4.0,), retrained=True)).end()
    assert not Records(replace(first, retrained=True)).finished, "those budgets were never retrained"


def test_a_study_whose_time_passed_is_not_finished(tmp_path: Path) -> None:
    one = settings(tmp_path, seconds=-1.0)
    Records(one).end()
    assert not Records(one).finished


def test_a_study_that_cannot_begin_ends_with_one_line(tmp_path: Path) -> None:
    one = settings(tmp_path)
    Records(one).say("float")
    with pytest.raises(SystemExit, match=r"^tiny: .* was made with steps 150, not 7; give another --studies folder$"):
        study.run(replace(one, steps=7))


def test_a_single_reading_has_no_deviation(capsys: pytest.CaptureFixture[str]) -> None:
    assert mean_std([2.0]) == (2.0, None)
    assert mean_std([1.0, 3.0])[1] == pytest.approx(2**0.5)
    show([Row("case", "us", *mean_std([2.0]), *mean_std([1.0, 3.0]), "peer", 1.0, None, "measured", ())])
    assert "2 against peer 2 ± 1.4" in capsys.readouterr().out
