"""GLUE (arXiv 1804.07461) with wattbit's own model: a linear head on its frozen last hidden state.

The model is a language model, and stays one: a sentence's feature is the mean over its tokens of the normalised last
hidden state, sentences of a pair are one text with a line's end between them, and the head is a logistic regression on
standardised features, fitted by L-BFGS: the same features give the same head. Quantization is judged with the head
that the float model's features gave (post-training), fine-tuned weights with a head of their own. A frozen model of
this size is far below published scores, and RTE is near chance; what counts is the difference that quantization makes.

Published GLUE tests have no labels: the score is on the development split. In a folder that is `test.tsv` where it has
labels (SST-2 as kept here), else `dev.tsv`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.corpus import GLUE_TASKS, TEXT_COLUMNS, tsv_rows
from wattbit.models.network import Experts, Transformer

TRAIN_ROWS = 5_000  # that a head is fitted on, at most: the first ones
BATCH_TOKENS = 16384
PENALTY = 1e-3  # of the head's squared weights
STEPS = 100  # of L-BFGS
HUB = "nyu-mll/glue"

Row = tuple[str, str]
"""Text and label."""


@dataclass(frozen=True)
class Split:
    texts: tuple[str, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """A GLUE task: classes, and its metric: accuracy, or Matthews correlation ("mcc", CoLA).

    held: more labelled sentences that none is trained on, where a folder has dev.tsv beside a labelled test.tsv.
    """

    name: str
    metric: str
    train: Split
    dev: Split
    held: Split | None = None


def read_task(source: str) -> Task:
    """From a folder with train.tsv and dev.tsv, or glue/TASK through the `datasets` library."""
    folder = Path(source)
    if folder.is_dir():
        train, dev = _read_tsv(folder / "train.tsv"), _read_tsv(folder / "dev.tsv")
        test = _read_tsv(folder / "test.tsv") if (folder / "test.tsv").is_file() else None
        if train is None or dev is None:
            raise WattbitError(f"{folder} has sentences without labels; it needs GLUE's train.tsv and dev.tsv")
        return _task(folder.resolve().name, train, test or dev, dev if test else None)
    name = source.removeprefix("glue/")
    if not source.startswith("glue/") or name not in GLUE_TASKS or name == "stsb":
        names = ", ".join(f"glue/{task}" for task in GLUE_TASKS if task != "stsb")
        raise WattbitError(f"{source!r} is neither a folder nor a GLUE task with classes; those are {names}")
    return _task(name, _read_hub(name, "train"), _read_hub(name, "validation" + "_matched" * (name == "mnli")))


def _task(name: str, train: list[Row], dev: list[Row], held: list[Row] | None = None) -> Task:
    classes = sorted({label for _, label in train})
    index = {label: i for i, label in enumerate(classes)}
    strange = sorted({label for _, label in (*dev, *(held or ()))} - set(classes))
    if not dev:
        raise WattbitError(f"{name} has no rows to be judged on; give its whole dev.tsv")
    if len(classes) < 2 or strange:
        raise WattbitError(f"{name} has the classes {', '.join(classes)} and dev's {', '.join(strange)}; look at it")

    def split(rows: list[Row]) -> Split:
        return Split(tuple(text for text, _ in rows), tuple(index[label] for _, label in rows))

    metric = "mcc" if name.startswith("cola") else "accuracy"
    return Task(name, metric, split(train), split(dev), split(held) if held else None)


def _read_tsv(path: Path) -> list[Row] | None:
    """Text and label of each row; None without labels. Without a header (CoLA) they are the columns 4 and 2."""
    if not path.is_file():
        raise WattbitError(f"{path} does not exist; a GLUE folder has train.tsv and dev.tsv")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise WattbitError(f"{path} is not UTF-8 text (byte {error.start}); give GLUE's own file") from None
    if not text.strip():
        raise WattbitError(f"{path} is empty; give GLUE's own file")
    rows = tsv_rows(text)
    titles = rows[0]
    columns = [i for i, title in enumerate(titles) if title in TEXT_COLUMNS]
    if not columns:
        return [(row[3].strip(), row[1]) for row in rows if len(row) == 4]
    if "label" not in titles:
        return None
    label = titles.index("label")
    whole = [row for row in rows[1:] if len(row) == len(titles)]
    return [("\n".join(row[i].strip() for i in columns), row[label]) for row in whole]


def _read_hub(task: str, split: str) -> list[Row]:
    import datasets  # slow to import, and needed here only

    try:
        rows = datasets.load_dataset(HUB, task, split=split)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise WattbitError(f"glue/{task} cannot be loaded ({reason}); give a local folder") from error
    return [("\n".join(row[c] for c in TEXT_COLUMNS if c in row), str(row["label"])) for row in rows]


@torch.no_grad()
def features(
    network: Transformer, tokenizer: Tokenizer, texts: Sequence[str], experts: Sequence[Experts] | None = None
) -> Tensor:
    """Mean over tokens of the last hidden state [n, D]; of a text longer than the context its end counts."""
    context = network.config.context
    encoded = [e.ids[-context:] or [0] for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))  # little padding
    found = torch.empty(len(encoded), network.config.d_model, device=network.device)
    start = 0
    while start < len(order):
        rows = order[start : start + 1]
        while start + len(rows) < len(order):
            following = order[start + len(rows)]
            if (len(rows) + 1) * len(encoded[following]) > BATCH_TOKENS:
                break
            rows.append(following)
        lengths = torch.tensor([len(encoded[i]) for i in rows])
        longest = int(lengths.max())
        tokens = torch.tensor([encoded[i] + [0] * (longest - len(encoded[i])) for i in rows], device=network.device)
        real = (torch.arange(longest) < lengths[:, None]).to(network.device)  # [n, S]; no token sees what follows it
        hidden = network.hidden(tokens, experts)[0] * real[:, :, None]
        found[torch.tensor(rows, device=network.device)] = hidden.sum(dim=1) / real.sum(dim=1, keepdim=True)
        start += len(rows)
    return found


@dataclass(frozen=True, eq=False)
class Head:
    """Logits [n, C] of features [n, D]: weight @ (x - mean) / std + bias."""

    mean: Tensor
    std: Tensor
    weight: Tensor  # [C, D]
    bias: Tensor  # [C]

    @classmethod
    def fit(cls, x: Tensor, labels: Sequence[int]) -> "Head":
        """Logistic regression of labels [n] on features [n, D]."""
        target = torch.tensor(labels, device=x.device)
        mean, std = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
        scaled = (x - mean) / std
        classes = int(target.max()) + 1
        weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
        bias = torch.zeros(classes, device=x.device, requires_grad=True)
        solver = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            solver.zero_grad()
            loss = F.cross_entropy(F.linear(scaled, weight, bias), target) + PENALTY * weight.square().sum()
            loss.backward()
            return loss

        solver.step(closure)
        return cls(mean, std, weight.detach(), bias.detach())

    def logits(self, x: Tensor) -> Tensor:
        """[n, C]."""
        return F.linear((x - self.mean) / self.std, self.weight, self.bias)

    def predict(self, x: Tensor) -> Tensor:
        """Classes [n]."""
        return self.logits(x).argmax(dim=1)


def score(metric: str, predicted: Tensor, labels: Sequence[int]) -> float:
    """Share of right classes, or Matthews correlation of two classes (0 where one of them is never predicted)."""
    wanted = torch.tensor(labels, device=predicted.device)
    if metric == "accuracy":
        return (predicted == wanted).double().mean().item()
    pairs = torch.stack([predicted, wanted]).double()
    spread = pairs - pairs.mean(dim=1, keepdim=True)
    below = spread.norm(dim=1).prod().item()
    return (spread[0] @ spread[1]).item() / below if below else 0.0


@dataclass(frozen=True, eq=False)
class Probe:
    """A task with the head that the network's features gave; `evaluate` judges other experts, or other weights."""

    task: Task
    tokenizer: Tokenizer
    head: Head

    @classmethod
    def fit(
        cls, task: Task, network: Transformer, tokenizer: Tokenizer, experts: Sequence[Experts] | None = None
    ) -> "Probe":
        found = features(network, tokenizer, task.train.texts[:TRAIN_ROWS], experts)
        return cls(task, tokenizer, Head.fit(found, task.train.labels[:TRAIN_ROWS]))

    def evaluate(self, network: Transformer, experts: Sequence[Experts] | None = None) -> float:
        found = features(network, self.tokenizer, self.task.dev.texts, experts)
        return score(self.task.metric, self.head.predict(found), self.task.dev.labels)

    def to_json(self) -> dict[str, Any]:
        split = {"train": min(TRAIN_ROWS, len(self.task.train.texts)), "dev": len(self.task.dev.texts)}
        return {"task": self.task.name, "metric": self.task.metric, "sentences": split, "backbone": "frozen"}
