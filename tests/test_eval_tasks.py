"""GLUE heads: reading tasks, the head against a separable case, metrics against their definitions."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import pearsonr

from tests.models_support import TINY_MODEL
from wattbit.errors import WattbitError
from wattbit.models.corpus import read_corpus
from wattbit.models.data import load_vocabulary
from wattbit.models.network import Transformer
from wattbit.models.tasks import Head, Probe, features, read_task, score

pytest_plugins = ["tests.models_support"]


def write_sst(folder: Path, rows: int = 40) -> Path:
    folder.mkdir()
    for name in ("train", "dev"):
        lines = [f"{'good fine nice' if i % 2 else 'bad poor dull'} film {i} \t{i % 2}" for i in range(rows)]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return folder


def test_tasks_are_read_from_folders(tmp_path: Path):
    sst = read_task(str(write_sst(tmp_path / "sst2-x")))
    assert (sst.metric, sst.train.labels[:3], sst.dev.texts[1]) == ("accuracy", (0, 1, 0), "good fine nice film 1")
    (tmp_path / "sst2-x" / "test.tsv").write_text("sentence\tlabel\nlast \t1\n")
    assert read_task(str(tmp_path / "sst2-x")).dev.texts == ("last",)  # labelled, hence the development split
    (tmp_path / "sst2-x" / "test.tsv").write_text("index\tsentence\n0\tlast\n")
    assert len(read_task(str(tmp_path / "sst2-x")).dev.texts) == 40
    cola = tmp_path / "cola"
    cola.mkdir()
    for name in ("train", "dev"):
        (cola / f"{name}.tsv").write_text("gj04\t1\t\tIt works.\ngj04\t0\t*\tWorks it.\n")
    assert (read_task(str(cola)).metric, read_task(str(cola)).dev.labels) == ("mcc", (1, 0))


def test_rows_end_at_line_feeds_alone_and_are_as_long_as_they_like(tmp_path: Path):
    """Sentences hold Unicode's other line ends, and quotes that mean nothing."""
    folder, odd = write_sst(tmp_path / "sst2"), 'a \u2028 film\u0085 "fine ' + "long " * 30_000
    (folder / "dev.tsv").write_text(f"sentence\tlabel\n{odd}\t1\n\nbad\t0\n", encoding="utf-8")
    assert read_task(str(folder)).dev.texts == (odd.strip(), "bad")
    assert read_corpus(str(folder)).valid == [f"{odd.strip()}\nbad\n"]


def test_a_task_comes_through_datasets(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(repository: str, config: str, split: str) -> list[dict[str, Any]]:
        assert (repository, config) == ("nyu-mll/glue", "mnli")
        assert split in ("train", "validation_matched")
        return [{"premise": f"p{i}", "hypothesis": f"h{i}", "label": i % 3} for i in range(9)]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    task = read_task("glue/mnli")
    assert (task.dev.texts[1], task.dev.labels[:4]) == ("p1\nh1", (0, 1, 2, 0))


def test_what_is_no_task_is_refused(tmp_path: Path):
    with pytest.raises(WattbitError, match=r"'glue/stsb' is neither a folder nor a GLUE task with classes"):
        read_task("glue/stsb")
    with pytest.raises(WattbitError, match=r"train.tsv does not exist; a GLUE folder has train.tsv and dev.tsv"):
        read_task(str(tmp_path))
    folder = write_sst(tmp_path / "sst2")
    for content, said in (
        (b"", "dev.tsv is empty"),
        (b"\n\n", "dev.tsv is empty"),
        (b"sentence\xff\tlabel\n", r"dev.tsv is not UTF-8 text \(byte 8\)"),
        (b"sentence\tlabel\n", "sst2 has no rows to be judged on"),
        (b"sentence\nfine\n", "has sentences without labels"),
        (b"sentence\tlabel\nfine\tmaybe\n", "has the classes 0, 1 and dev's maybe"),
    ):
        (folder / "dev.tsv").write_bytes(content)
        with pytest.raises(WattbitError, match=said):
            read_task(str(folder))


def test_metrics_are_their_definitions():
    predicted = torch.tensor([0, 1, 1, 0, 1, 1, 0, 0])
    labels = (0, 1, 0, 0, 1, 1, 1, 0)
    assert score("accuracy", predicted, labels) == 6 / 8
    assert score("mcc", predicted, labels) == pytest.approx(pearsonr(predicted.numpy(), labels).statistic)
    assert score("mcc", torch.ones(8, dtype=torch.int64), labels) == 0


def test_a_head_separates_what_a_line_separates():
    torch.manual_seed(0)
    x = torch.randn(200, 5)
    labels = (x @ torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0]) > 0.3).long().tolist()
    head = Head.fit(100 * x + 7, labels)  # the features' scale does not matter
    assert score("accuracy", head.predict(100 * x + 7), labels) > 0.97


def test_features_do_not_depend_on_the_batch(data: Path):
    torch.manual_seed(0)
    network, vocabulary = Transformer(TINY_MODEL), load_vocabulary(data)
    texts = ["def main", "import sys, argparse as parser", "x", "", "return the value of the argument " * 20]
    together = features(network, vocabulary, texts)
    for text, row in zip(texts, together, strict=True):
        torch.testing.assert_close(features(network, vocabulary, [text])[0], row, rtol=1e-4, atol=1e-5)


def test_a_probe_judges_other_experts_with_the_same_head(data: Path, tmp_path: Path):
    torch.manual_seed(0)
    network, vocabulary = Transformer(TINY_MODEL), load_vocabulary(data)
    probe = Probe.fit(read_task(str(write_sst(tmp_path / "sst2"))), network, vocabulary)
    assert probe.evaluate(network) > 0.9
    silent = [lambda x, counts: torch.zeros_like(x) for _ in network.layers]
    assert probe.evaluate(network, silent) <= probe.evaluate(network)
    assert probe.to_json() == {
        "task": "sst2",
        "metric": "accuracy",
        "sentences": {"train": 40, "dev": 40},
        "backbone": "frozen",
    }
