"""results/methods.*: the rows and tables are what the committed studies give."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from wattbit.errors import WattbitError
from wattbit.plots import memory_front

ROOT = Path(__file__).parents[1]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import methods

    return methods


def test_the_committed_rows_and_tables_follow_from_the_committed_studies(benchmark, tmp_path: Path):
    studies = json.loads((ROOT / "results" / "methods.studies.json").read_text())
    rows = [
        asdict(row)
        for name, records in studies.items()
        for row in (*benchmark.rows(name, records), *benchmark.speed_rows(name, records))
    ]
    committed = json.loads((ROOT / "results" / "methods.json").read_text())
    assert len(rows) == len(committed)
    for ours, theirs in zip(rows, committed, strict=True):
        for name, value in theirs.items():
            expected = tuple(value) if isinstance(value, list) else value
            assert ours[name] == (pytest.approx(expected) if isinstance(value, float) else expected)
    benchmark.write_tables(studies, tmp_path / "methods.json")
    assert (tmp_path / "methods.tables.md").read_text() == (ROOT / "results" / "methods.tables.md").read_text()


def test_what_not_all_seeds_have_is_left_out(benchmark):
    records = json.loads((ROOT / "results" / "methods.studies.json").read_text())["small-e16"]
    key = "dmpq-gptq@3.0"
    assert key in records[0]["recipes"] and key not in benchmark.listed(records, "recipes")


def test_a_rise_is_against_the_same_seeds_reference(benchmark):
    records = json.loads((ROOT / "results" / "methods.studies.json").read_text())["wt2-e16"]
    assert benchmark.rise(records, "tuned", "uniform8", "uniform8") == [0, 0, 0]
    assert all(0 < rise < 1 for rise in benchmark.rise(records, "tuned", "dmpq@2.75", "uniform8"))


def test_kept_studies_are_priced_anew(benchmark):
    study = json.loads((ROOT / "results" / "methods.studies.json").read_text())["small-e16"][0]
    study = study | {"recipes": {key: study["recipes"][key] for key in ("rtn@4.0", "dmpq@2.5")}, "tuned": {}}
    for one in study["recipes"].values():
        one["ms_per_token"] = 0.0
    benchmark.price(study)
    wide, narrow = study["recipes"].values()
    assert 0 < narrow["ms_per_token"] < wide["ms_per_token"] and 0 < narrow["mj_per_token"] < wide["mj_per_token"]


def test_what_fits_the_chip_is_simulated(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import study_rtl

    study = json.loads((ROOT / "results" / "methods.studies.json").read_text())["wt2-e64"][0]
    fits, large = study["recipes"]["dmpq@2.5"], study["tuned"]["random@2.5"]
    assert fits["ms_per_token"] is not None and large["ms_per_token"] is None
    for one in (fits, large):
        one.pop("rtl_ms_per_token", None)
    study |= {"recipes": {"dmpq@2.5": fits, "odp@2.5": {"refused": "why"}}, "tuned": {"random@2.5": large}}

    def simulations(model, workload, folder, wanted, workers):
        assert model.experts == 64 and workload.batch == 256 and workers == 2
        return {bits: study_rtl.Simulated(0.5, 0.25) for bits in wanted}

    monkeypatch.setattr(study_rtl, "simulations", simulations)
    benchmark.on_rtl(study, tmp_path, 2)
    assert (fits["rtl_ms_per_token"], fits["rtl_mj_per_token"]) == (0.5, 0.25)
    assert "rtl_ms_per_token" not in large


def test_speed_is_modelled_for_every_seed_and_simulated_for_the_first(benchmark):
    def record(seed: int, **more: float) -> dict:
        keys = ("uniform8", "dmpq@2.5", "exact@2.5")
        tuned = {
            key: {"ms_per_token": 8.0 / (1 + i), "mj_per_token": 3.0} | {k: v / (1 + i) for k, v in more.items()}
            for i, key in enumerate(keys)
        }
        return {"seed": seed, "tuned": tuned}

    found = benchmark.speed_rows("some", [record(0, rtl_ms_per_token=6.0), record(1), record(2)])
    said = {(row.metric, row.provenance, row.peer_name): row for row in found}
    modelled = said["ms/token, FPGA", "modelled", "uniform8"]
    assert (modelled.ratio, modelled.goal, modelled.seeds) == (pytest.approx(2.0), 2.0, (0, 1, 2))
    simulated = said["ms/token, FPGA", "simulated", "exact@2.5"]
    assert (simulated.ratio, simulated.goal, simulated.seeds) == (pytest.approx(2 / 3), None, (0,))
    assert simulated.ours_std is None
    assert not any(row.provenance == "measured" for row in found)  # nothing of the host's was recorded


@pytest.mark.parametrize("value", [[], 3, {"a": [{}]}, {"a": {"b": 1}}])
def test_a_file_without_studies_is_refused(benchmark, tmp_path: Path, value: object):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(value))
    with pytest.raises(WattbitError, match=r"some\.json holds no studies; give results/methods\.studies\.json"):
        benchmark.kept_studies(path)


def later(record: dict, **changed: object) -> dict:
    """What a later study of the same model found, at one more budget."""
    found = {"uniform8": {"perplexity": {"token": 1.0}}, "dmpq@2.25": {"perplexity": {"token": 2.0}}}
    return (
        record
        | {"recipes": {}, "tuned": found, "glue": {"sst2": {"dmpq@2.25": 0.5}}, "seconds": {"more": 1.0}}
        | changed
    )


def test_later_studies_of_the_same_models_are_added_to_the_kept_ones(benchmark):
    kept = json.loads((ROOT / "results" / "methods.studies.json").read_text())["wt2-e16"]
    found = benchmark.joined(kept, [later(record) for record in kept])
    assert [one["seed"] for one in found] == [0, 1, 2]
    for one, before in zip(found, kept, strict=True):
        assert set(one["tuned"]) == {*before["tuned"], "dmpq@2.25"}
        assert one["tuned"]["dmpq@2.5"] == before["tuned"]["dmpq@2.5"]
        assert one["tuned"]["uniform8"] == {"perplexity": {"token": 1.0}}  # the later figure
        assert one["glue"] == before["glue"] | {"sst2": {"dmpq@2.25": 0.5}}
        assert one["recipes"] == before["recipes"] and one["float"] == before["float"]


def test_a_later_study_of_another_model_or_with_other_settings_is_refused(benchmark):
    kept = json.loads((ROOT / "results" / "methods.studies.json").read_text())["wt2-e16"]
    wrong = later(kept[2], made_with=kept[2]["made_with"] | {"steps": 600})
    with pytest.raises(WattbitError, match="wt2-e16, seed 2, was made with steps 150, not 600; leave one"):
        benchmark.joined(kept, [later(kept[0]), later(kept[1]), wrong])
    wrong = later(kept[1], train=kept[1]["train"] | {"sha256": "00"})
    with pytest.raises(WattbitError, match=r"seed 1, was made with weights [0-9a-f]+, not 00; leave one"):
        benchmark.joined(kept, [later(kept[0]), wrong, later(kept[2])])
    with pytest.raises(WattbitError, match=r"seeds \[0, 1, 2\] do not go on with seeds \[0, 1\]"):
        benchmark.joined(kept, [later(kept[0]), later(kept[1])])


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_same_points_are_the_same_picture(tmp_path: Path, suffix: str):
    points = {"dmpq": [(2.0, 20.0, 0.5), (1.0, 21.0, None)], "random": [(1.0, 23.0, 0.1)]}
    first, again = (memory_front(points, tmp_path / f"{name}.{suffix}").read_bytes() for name in ("first", "again"))
    assert first == again
