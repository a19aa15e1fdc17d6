"""Corpora: formats, splits, determinism, and what is refused."""

import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models_support import write_text_corpus
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.models import corpus
from wattbit.models.corpus import read_corpus, read_library
from wattbit.models.data import load_tokens, load_vocabulary, prepare
from wattbit.models.sample import Samples, draw

pytest_plugins = ["tests.models_support"]


def test_the_library_is_split_by_file_and_the_same_each_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(corpus, "CHARACTERS_MAX", 1_500_000)
    first, second = read_library(), read_library()
    assert first == second
    assert not set(first.train) & set(first.valid)
    assert sum(map(len, first.train + first.valid)) >= 1_500_000
    topics = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
    assert topics.read_text(encoding="utf-8") in first.train + first.valid


def test_prepare_gives_back_the_text_and_its_own_digest(tmp_path: Path):
    folder = write_text_corpus(tmp_path / "corpus")
    record = prepare(str(folder), tmp_path / "a", 300)
    again = prepare(str(folder), tmp_path / "b", 300)
    assert record == again == read_json(tmp_path / "a" / "data.json")
    text = (folder / "input.txt").read_text(encoding="utf-8")
    tokens = np.concatenate([load_tokens(tmp_path / "a", split, 1) for split in ("train", "valid")])
    assert load_vocabulary(tmp_path / "a").decode(tokens.tolist()) == text
    assert tokens.dtype == np.uint16
    assert tokens.max() < 300
    other = prepare(str(folder), tmp_path / "c", 320)
    assert other["digest"] != record["digest"]


def test_wikitext_and_glue_folders(tmp_path: Path):
    wiki, cola, rte = (tmp_path / name for name in ("wiki", "cola", "rte"))
    for folder in (wiki, cola, rte):
        folder.mkdir()
    for name in ("train", "valid", "test"):
        (wiki / f"{name}.txt").write_text(f" = {name} = \n")
        (cola / f"{name.replace('valid', 'dev')}.tsv").write_text(f"src\t1\t\tA {name} sentence.\n")
        (rte / f"{name.replace('valid', 'dev')}.tsv").write_text(
            f'index\tsentence1\tsentence2\tlabel\n0\tA "{name}.\tB {name}.\tentailment\n'
        )
    assert read_corpus(str(wiki)).train == [" = train = \n"]
    assert read_corpus(str(wiki)).valid == [" = valid = \n"]
    assert read_corpus(str(cola)).valid == ["A dev sentence.\n".replace("dev", "valid")]
    assert read_corpus(str(rte)).train == ['A "train.\nB train.\n']


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wikitext-103", ("Salesforce/wikitext", "wikitext-103-raw-v1", "validation")),
        ("c4", ("allenai/c4", "en", "validation")),
        ("glue/mnli", ("nyu-mll/glue", "mnli", "validation_matched")),
    ],
)
def test_named_corpora_are_streamed_to_the_cap(name: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(repository: str, config: str, split: str, streaming: bool) -> Any:
        asked.append((repository, config, split))
        assert streaming
        return ({"premise" if "glue" in name else "text": f"row {i}", "label": 1} for i in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setattr(corpus, "CHARACTERS_MAX", 5000)
    found = read_corpus(name)
    assert asked == [(*expected[:2], "train"), expected]
    assert found.train[0].startswith("row 0\nrow 1\n")
    assert 5000 <= len(found.train[0]) < 5020


def test_a_corpus_that_cannot_be_fetched_is_one_error(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no\nroute")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(WattbitError, match=r"^corpus c4 cannot be loaded \(no route\); give --data a local folder$"):
        read_corpus("c4")


def test_real_datasets_library_reads_glue_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The `datasets` library itself, on a data set of local files."""
    import datasets

    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text('{"sentence": "it works", "label": 1}\n' * 3)
    load = datasets.load_dataset

    def local(repository: str, config: str, split: str, streaming: bool) -> Any:
        assert (repository, config) == ("nyu-mll/glue", "sst2")
        files = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
        return load("json", data_files=files, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    assert read_corpus("glue/sst2").valid == ["it works\n" * 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "input.txt is empty; give it text"),
        (b" \n\n", "input.txt is empty; give it text"),
        (b"text\0text", "input.txt is binary \\(a zero byte at character 4\\); give it text"),
        (b"\xff\xfe\x00", "input.txt is not UTF-8 text \\(byte 0\\); give it text"),
    ],
)
def test_text_that_is_none_is_refused(content: bytes, message: str, tmp_path: Path):
    (tmp_path / "input.txt").write_bytes(content)
    with pytest.raises(WattbitError, match=message):
        prepare(str(tmp_path), tmp_path / "out", 300)
    assert not (tmp_path / "out").exists()


def test_what_is_no_corpus_is_refused(tmp_path: Path):
    with pytest.raises(WattbitError, match=r"holds no corpus; it needs train.txt and valid.txt, or input.txt"):
        read_corpus(str(tmp_path))
    with pytest.raises(
        WattbitError, match=r"'wikitext-104' is neither a folder nor a known corpus; the names are wiki"
    ):
        read_corpus("wikitext-104")
    with pytest.raises(WattbitError, match=r"vocab_size must be 257\.\.65536 \(bytes and merges\), not 256"):
        prepare(str(tmp_path), tmp_path / "out", 256)


def test_too_little_text_is_refused(tmp_path: Path):
    (tmp_path / "input.txt").write_text("much too short for a context")
    prepare(str(tmp_path), tmp_path / "out", 257)
    with pytest.raises(WattbitError, match=r"the train split has .* tokens, at least 33 are needed; take more text"):
        Samples.load(tmp_path / "out", 32)


def test_damaged_tokens_are_refused(data: Path, tmp_path: Path):
    (tmp_path / "data.json").write_text((data / "data.json").read_text())
    (tmp_path / "train.npy").write_bytes((data / "train.npy").read_bytes()[:1000])
    with pytest.raises(WattbitError, match=r"train.npy cannot be read .* run the data stage again"):
        load_tokens(tmp_path, "train", 1)
    np.save(tmp_path / "train.npy", np.zeros(5, dtype=np.uint16))
    with pytest.raises(WattbitError, match=r"train.npy has 5 tokens, not"):
        load_tokens(tmp_path, "train", 1)


def test_samples_do_not_overlap_and_targets_follow_inputs(data: Path):
    samples = Samples.load(data, 32)
    tokens = load_tokens(data, "valid", 1)
    assert len(samples.valid) + len(samples.held) == min(192, (len(tokens) - 1) // 32)
    starts = {tuple(row) for row in samples.valid.tolist()}
    assert not starts & {tuple(row) for row in samples.held.tolist()}
    again = draw(samples.train, 32, 4, seed=1, step=2)
    assert again.equal(draw(samples.train, 32, 4, seed=1, step=2))
    assert not again.equal(draw(samples.train, 32, 4, seed=1, step=3))
    assert again.shape == (4, 33)
