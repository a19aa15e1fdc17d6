"""`wattbit eval`, `compare` and `explain` on a small run."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from tests.models_support import write_text_corpus
from tests.test_eval_tasks import write_sst
from wattbit.cli import main
from wattbit.commands.compare import Line, inputs_digest, lines, markdown
from wattbit.commands.eval import Judge, judge_run, summary
from wattbit.commands.explain import read_allocation
from wattbit.commands.quantize import read_recipe
from wattbit.errors import InfeasibleError, WattbitError
from wattbit.files import write_json
from wattbit.pipeline import learner
from wattbit.plan import Allocation, Cost, ExpertId, Workload
from wattbit.presets import run_config
from wattbit.progress import silent
from wattbit.recipe import Recipe
from wattbit.run import Run


def invoke(*words: str) -> str:
    result = CliRunner().invoke(main, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of the tiny preset in runs/ and its comparison in out/."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compare(write_text_corpus(folder / "text"))
    return folder


def compare(text: Path) -> str:
    options = ["--methods", "rtn,exact", "--budgets", "2.5,3", "--seeds", "1", "--reference", "random", "--out", "out"]
    return invoke("compare", "--preset", "tiny", "--data", str(text), *options)


def test_compare_writes_a_table_of_real_bytes_and_resumes(compared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(compared)
    rows = list(csv.DictReader((compared / "out" / "table.csv").open()))
    assert [(row["method"], row["budget_bits"]) for row in rows] == [
        (method, bits) for bits in ("2.5", "3.0") for method in ("random", "rtn", "exact")
    ]
    by = {(row["method"], row["budget_bits"]): row for row in rows}
    assert float(by["rtn", "2.5"]["mean_bits_mean"]) == 2
    assert float(by["rtn", "2.5"]["expert_MB_mean"]) < float(by["rtn", "3.0"]["expert_MB_mean"])
    assert "<svg" in (compared / "out" / "front.svg").read_text()
    assert {row["perplexity_std"] for row in rows} == {""}, "of one seed there is no deviation"
    cells = {path: path.stat().st_mtime_ns for path in (compared / "out" / "cells").iterdir()}
    assert len(cells) == 6
    next(iter(cells)).unlink()
    before = (compared / "out" / "table.md").read_text()
    shown = compare(compared / "text")
    assert sum(path.stat().st_mtime_ns == old for path, old in cells.items()) == 5
    header, *_ = before.splitlines()
    assert header in shown
    assert "| ms/token (modelled) | mJ/token above idle (modelled) | decide, s (measured) |" in header
    assert {row["priced"] for row in rows} == {"modelled"}


def test_cells_are_of_their_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A run's name says nothing of the code, of a task's labels or of a test text."""
    text = write_text_corpus(tmp_path / "text")
    run = Run(tmp_path, run_config("tiny", str(text), "virtual-z2", 0))
    task = write_sst(tmp_path / "sst2")
    seen = [inputs_digest(run, ()), inputs_digest(run, [str(task)])]
    (task / "dev.tsv").write_text((task / "dev.tsv").read_text().replace("good", "bad"))
    seen.append(inputs_digest(run, [str(task)]))
    (text / "test.txt").write_text("another text\n")
    seen.append(inputs_digest(run, ()))
    for part in ("models", "policy", "hls"):
        monkeypatch.setattr("wattbit.run.code_digest", lambda folder, part=part: f"other {folder == part}")
        seen.append(inputs_digest(run, ()))
    assert len(set(seen)) == len(seen)
    assert inputs_digest(run, ()) == seen[-1]


def test_calibration_is_training_text(compared: Path, monkeypatch: pytest.MonkeyPatch):
    """Not what the model is judged by: without a test text that is all of the validation text."""
    monkeypatch.chdir(compared)
    judge = judge_run(Run.latest(Path("runs")), (), None, silent)
    assert judge.text == "validation"
    contexts = judge.subject._calibration
    train = torch.from_numpy(np.asarray(learner(Run.latest(Path("runs"))).samples.train).astype(np.int64))
    read = train.unfold(0, contexts.shape[1], 1)
    assert len(contexts) == 64
    assert {tuple(one.tolist()) for one in contexts} <= {tuple(one.tolist()) for one in read}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bits", "3"], "--bits needs --method"),
        (["--group-size", "32"], "--group-size needs --method"),
        (["--seed", "0"], "--seed needs --method"),
        (["--recipe", "recipe.json", "--bits", "4"], "--bits needs --method"),
        (["--data", "/nonexistent"], "--data needs --model"),
        (["--context", "16"], "--context needs --model"),
        (["--device", "cpu"], "--device needs --model"),
        (["--model", "x", "--device", "foo"], "'foo' is not one of"),
        (["--model", "x", "--method", "dmpq"], "--method dmpq prices hardware, and a checkpoint has no board"),
    ],
)
def test_options_that_would_mean_nothing_are_refused(words: list[str], said: str, tmp_path: Path):
    (tmp_path / "recipe.json").write_text("{}")
    result = CliRunner().invoke(main, ["eval", *(str(tmp_path / w) if w == "recipe.json" else w for w in words)])
    assert result.exit_code == 2 and said in result.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_there_is_not_is_one_line():
    result = CliRunner().invoke(main, ["eval", "--model", "x", "--device", "cuda"])
    assert result.exit_code == 1 and "PyTorch sees no GPU" in result.stderr and result.stderr.count("\n") == 1


def test_eval_agrees_with_compare(compared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(compared)
    (path,) = (compared / "out" / "cells").glob("*-exact-3.0.json")
    cell = json.loads(path.read_text())
    (compared / "recipe.json").write_text(json.dumps(cell["recipe"]))
    found = json.loads(invoke("eval", "--recipe", "recipe.json", "--json"))
    assert read_recipe(path) == read_recipe(compared / "recipe.json"), "a cell is taken as it is"
    (compared / "evaluated.json").write_text(json.dumps(found))
    assert read_allocation(compared / "evaluated.json") == read_recipe(path).allocation
    assert found["perplexity"] == cell["perplexity"]
    assert found["expert_bytes"] == cell["expert_bytes"]
    assert found["cost"]["provenance"] == "modelled"
    assert found["cost"]["mj_per_token"] > 0, "the virtual board's power is a model"
    assert "mJ/token above idle (modelled)" in invoke("eval", "--recipe", "recipe.json")
    assert len(found["tokens"]) == 8
    floats = json.loads(invoke("eval", "--json"))
    assert floats["perplexity"]["token"] == pytest.approx(found["perplexity"]["token"], rel=0.05)
    assert "perplexity a word (measured)" in invoke("eval")


def test_explain_names_every_expert_and_draws(compared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(compared)
    invoke("stats")
    bits = {ExpertId(layer, expert): 8 if expert == 1 else 2 for layer in range(2) for expert in range(4)}
    Path("widths.json").write_text(json.dumps(Allocation.of(bits).to_json()))
    shown = invoke("explain", "--recipe", "widths.json", "--out", "why")
    record = json.loads(Path("why/explain.json").read_text())
    assert [e["weight_bits"] for e in record["experts"]] == list(bits.values())
    assert all(str(expert) in shown for expert in bits)
    assert "<svg" in Path("why/widths.svg").read_text()
    done = CliRunner().invoke(main, ["explain", "--recipe", "widths.json", "--out", "why"])
    assert "kept in why: explain.md, explain.json, widths.svg" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "--method", "magic"], "a method is one of rtn, gptq, "),
        (["eval", "--method", "magic", "--model", "unread"], "a method is one of rtn, gptq, "),
        (["eval", "--recipe", "out/table.md", "--model", "unread"], "wattbit: out/table.md is not JSON"),
        (["eval", "--method", "rtn", "--bits", "1"], "a budget of 1.0 bits is below the narrowest width, 2; raise it"),
        (["eval", "--method", "rtn", "--bits", "nan"], "a budget is a number of bits, not nan"),
        (["compare", "--task", "nowhere", "--out", "x"], "'nowhere' is neither a folder nor a GLUE task"),
        (["compare", "--budgets", "3;4", "--out", "x"], "a list of numbers is written like 2.5,3,4, not '3;4'"),
        (["compare", "--methods", "rtn", "--reference", "best", "--out", "x"], "not 'best'"),
        (["compare", "--budgets", "1", "--out", "x"], "a budget of 1.0 bits is below the narrowest width"),
        (["compare", "--data", "nowhere", "--out", "x"], "'nowhere' is neither a folder nor a known corpus"),
    ],
)
def test_bad_input_is_one_line(compared: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(compared)
    runs = sorted(Path("runs").iterdir())
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not Path("x").exists() and sorted(Path("runs").iterdir()) == runs


@pytest.mark.parametrize("family", ["mixtral", "olmoe"])
def test_eval_takes_a_hugging_face_checkpoint(family: str, tmp_path: Path):
    from tests.hf_support import checkpoint, save_tokenizer

    model = checkpoint(family, tmp_path / "model")
    save_tokenizer(model)
    text = tmp_path / "text"
    text.mkdir()
    (text / "input.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 2000)
    (text / "test.txt").write_text("a lazy dog jumps\n" * 40)
    options = ["eval", "--model", str(model), "--data", str(text), "--context", "16", "--json"]
    floats, narrow = (json.loads(invoke(*options, *more)) for more in ([], ["--method", "gptq", "--bits", "2"]))
    assert floats["perplexity"]["words"] == 40 * 5
    assert narrow["expert_bytes"] < 0.25 * floats["expert_bytes"]
    assert narrow["perplexity"]["token"] != floats["perplexity"]["token"]
    assert narrow["cost"] is None
    assert sum(narrow["tokens"].values()) > 0


def test_a_run_without_a_model_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["eval"])
    assert result.exit_code == 1
    assert "make one with `wattbit train`" in result.stderr


def test_explain_says_what_the_run_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = Run.create(Path("runs"), run_config("tiny", None, "virtual-z2", 0))
    for stage, lacks in (("stats", "statistics"), ("cotrain", "allocation of its own")):
        result = CliRunner().invoke(main, ["explain"])
        assert result.exit_code == 1
        assert f"has no {lacks}; run `wattbit {stage}` with its options" in result.stderr
        write_json(run.path("stages", f"{stage}.json"), {})


def test_eval_says_why_a_meter_refuses():
    class Small:
        def cost(self, allocation: Allocation, workload: Workload) -> Cost:
            raise InfeasibleError("it does not fit the chip; take fewer bits")

    subject = SimpleNamespace(stats=lambda _: (), top_k=1)
    words = {"context": 4, "stride": 2, "token": 3.0, "word": 9.0}
    judge = Judge(None, subject, "test", None, 1, 4, 2, weighed=Small())
    recipe = Recipe("rtn", Allocation.of({ExpertId(0, 0): 4}), "rtn")
    cost = judge._cost(recipe)
    assert cost == {"refused": "it does not fit the chip; take fewer bits"}
    found = {"method": "rtn", "mean_bits": 4.0, "expert_bytes": 10, "perplexity": words | {"text": "test"}, "glue": {}}
    shown = summary(found | {"cost": cost, "tokens": {"L0E0": 3}, "rounded_to_nearest": []})
    assert "no time or energy: it does not fit the chip; take fewer bits" in shown
    assert "ms/token" not in shown


def test_explain_says_where_it_cannot_write(compared: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(compared)
    invoke("stats")
    bits = {ExpertId(layer, expert): 4 for layer in range(2) for expert in range(4)}
    Path("four.json").write_text(json.dumps(Allocation.of(bits).to_json()))
    (compared / "file").write_text("")
    for out in ("file/why", "/proc/why"):
        result = CliRunner().invoke(main, ["explain", "--recipe", "four.json", "--out", out])
        assert result.exit_code == 1
        assert f"{out} cannot be written to" in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["5", "null", "[]", "{}", '{"allocation": 3}', "no JSON"])
def test_explain_refuses_what_is_no_allocation(text: str, tmp_path: Path):
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(WattbitError, match=r"mine\.json"):
        read_allocation(tmp_path / "mine.json")


def test_lines_pair_seeds_and_skip_what_was_refused():
    def cell(perplexity: float) -> dict:
        text = {"token": perplexity, "word": 2 * perplexity}
        return {"mean_bits": 3.0, "expert_bytes": 10, "perplexity": text, "glue": {}, "cost": None, "decide_s": 1.0}

    worse = {0: 1.02, 1: 1.03, 2: 1.01}
    cells = {("a", 3.0, s): cell(10.0 + s) for s in range(3)} | {
        ("b", 3.0, s): cell((10.0 + s) * w) for s, w in worse.items()
    }
    cells["c", 3.0, 0] = {"refused": "no"}
    found = lines(cells, "a")
    assert [(line.method, line.seeds) for line in found] == [("a", 3), ("b", 3)]
    assert found[0].p is None
    logs = [math.log(w) for w in worse.values()]
    t = fmean(logs) / (stdev(logs) / math.sqrt(3))
    assert found[1].p == pytest.approx(1 - t / math.sqrt(t * t + 2))  # Student's t with 2 degrees of freedom
    assert isinstance(found[0], Line)
    assert "10.00" not in markdown(found, "a").splitlines()[0]


def test_a_run_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = run_config("tiny", None, "virtual-z2", 0)
    cotrain = config.settings["cotrain"] | {"bygone": 1}
    run = Run.create(tmp_path / "runs", replace(config, settings=dict(config.settings) | {"cotrain": cotrain}))
    write_json(run.path("stages", "train.json"), {})
    for words in (["eval"], ["stats"]):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 1
        assert "config.json is of another version" in result.stderr and "'bygone'" in result.stderr
