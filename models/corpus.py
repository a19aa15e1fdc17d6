"""Where text comes from: the Python standard library, a local folder, or a named data set."""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wattbit.errors import WattbitError

CHARACTERS_MAX = 7_000_000  # taken of a corpus, so that preparing one takes seconds
WIKITEXT_MAX = 12_000_000  # of a folder's train.txt: all of WikiText-2
VALID_EVERY = 20  # about one file in so many is for validation
VALID_SHARE = 0.1  # of a corpus that comes as one text

HUB_CORPORA = {
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "c4": ("allenai/c4", "en"),
}
GLUE_TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}  # the last is tables
TEXT_COLUMNS = (
    "text",
    "sentence",
    "sentence1",
    "sentence2",
    "question",
    "question1",
    "question2",
    "premise",
    "hypothesis",
)


@dataclass(frozen=True)
class Corpus:
    """Texts to train on and to validate with, never empty."""

    name: str
    train: list[str]
    valid: list[str]

    def __post_init__(self) -> None:
        for split, texts in (("train", self.train), ("validation", self.valid)):
            if not any(text.strip() for text in texts):
                raise WattbitError(f"the {split} part of corpus {self.name} is empty; give it text")


def read_corpus(source: str | None) -> Corpus:
    """None: the standard library; else a folder in one of `read_folder`'s formats or a name of `read_hub`'s."""
    if source is None:
        return read_library()
    if Path(source).is_dir():
        return read_folder(Path(source))
    return read_hub(source)


def read_library() -> Corpus:
    """Sources of this Python's standard library, without its tests, split by a hash of each file's name.

    pydoc_data (the language reference as text) comes first, the rest in the order of the hash until the cap: the same
    Python gives the same corpus.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        if not NOT_LIBRARY.intersection(name.parts):
            found.append((name.parts[0] != "pydoc_data", hashlib.sha256(name.as_posix().encode()).digest(), path))
    train: list[str] = []
    valid: list[str] = []
    characters = 0
    for _, digest, path in sorted(found):
        if characters >= CHARACTERS_MAX:
            break
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:  # a few sources are kept in other encodings on purpose
            continue
        if text.strip():
            (train if digest[0] % VALID_EVERY else valid).append(text)
            characters += len(text)
    return Corpus("python-stdlib", train, valid)


def read_folder(folder: Path) -> Corpus:
    """WikiText (train.txt, valid.txt), one text (input.txt, its end for validation), or GLUE (train.tsv, dev.tsv)."""
    name = folder.resolve().name
    if (folder / "train.txt").is_file() and (folder / "valid.txt").is_file():
        return Corpus(name, [_read(folder / "train.txt")[:WIKITEXT_MAX]], [_read(folder / "valid.txt")])
    if (folder / "input.txt").is_file():
        text = _read(folder / "input.txt")[:CHARACTERS_MAX]
        cut = int(len(text) * (1 - VALID_SHARE))
        return Corpus(name, [text[:cut]], [text[cut:]])
    if (folder / "train.tsv").is_file() and (folder / "dev.tsv").is_file():
        return Corpus(name, _read_tsv(folder / "train.tsv"), _read_tsv(folder / "dev.tsv"))
    raise WattbitError(
        f"{folder} holds no corpus; it needs train.txt and valid.txt, or input.txt, or train.tsv and dev.tsv"
    )


def read_test(source: str | None) -> tuple[str, list[str]]:
    """Texts to judge a model with, and the split that they are: a folder's test.txt, else the validation part."""
    if source is not None and (Path(source) / "test.txt").is_file():
        return "test", [_read(Path(source) / "test.txt")]
    return "validation", read_corpus(source).valid


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WattbitError(f"{path} is not UTF-8 text (byte {error.start}); give it text") from None
    if "\0" in text:
        raise WattbitError(f"{path} is binary (a zero byte at character {text.index(chr(0))}); give it text")
    if not text.strip():
        raise WattbitError(f"{path} is empty; give it text")
    return text


def _read_tsv(path: Path) -> list[str]:
    """The sentences of a GLUE file as one text; without a header (CoLA) they are the last column."""
    rows = tsv_rows(_read(path))
    columns = [i for i, title in enumerate(rows[0]) if title in TEXT_COLUMNS]
    body = rows[1:] if columns else rows
    columns = columns or [len(rows[0]) - 1]
    lines = [row[i].strip() for row in body for i in columns if i < len(row)]
    return ["\n".join(lines)[:CHARACTERS_MAX] + "\n"]


def tsv_rows(text: str) -> list[list[str]]:
    """Fields of a GLUE file's rows. Quotes mean nothing there, and rows end at line feeds alone: sentences hold other
    line ends of Unicode's."""
    return [line.split("\t") for line in text.split("\n") if line]


def read_hub(name: str) -> Corpus:
    """WikiText-2 and -103, C4 or a GLUE task through the `datasets` library, streamed until the cap."""
    task = name.removeprefix("glue/")
    if name in HUB_CORPORA:
        repository, config = HUB_CORPORA[name]
    elif name.startswith("glue/") and task in GLUE_TASKS:
        repository, config = "nyu-mll/glue", task
    else:
        names = ", ".join([*HUB_CORPORA, *(f"glue/{task}" for task in GLUE_TASKS)])
        raise WattbitError(f"{name!r} is neither a folder nor a known corpus; the names are {names}")
    valid_split = "validation_matched" if task == "mnli" else "validation"
    train = "".join(_stream(name, repository, config, "train", CHARACTERS_MAX))
    valid = "".join(_stream(name, repository, config, valid_split, int(CHARACTERS_MAX * VALID_SHARE)))
    return Corpus(name, [train], [valid])


def _stream(name: str, repository: str, config: str, split: str, characters_max: int) -> Iterator[str]:
    import datasets  # slow to import, and needed here only

    characters = 0
    try:
        for row in datasets.load_dataset(repository, config, split=split, streaming=True):
            for text in (row[column] for column in TEXT_COLUMNS if column in row):
                yield text + "\n"
                characters += len(text) + 1
            if characters >= characters_max:
                return
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WattbitError(f"corpus {name} cannot be loaded ({reason}); give --data a local folder") from error
