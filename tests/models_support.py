"""A small trained model for the tests of wattbit.models."""

import argparse
import inspect
from pathlib import Path

import pytest
import torch

from wattbit.models.config import ModelConfig, TrainConfig
from wattbit.models.data import prepare
from wattbit.models.train import train

torch.set_num_threads(1)  # small tensors gain nothing from threads, and lose much on a busy machine

TINY_MODEL = ModelConfig(vocab_size=300, d_model=16, d_hidden=32, layers=2, heads=2, experts=4, top_k=2, context=32)
TINY_TRAIN = TrainConfig(steps=40, batch=8, learning_rate=1e-2, warmup_steps=5, threads=1)


def write_text_corpus(folder: Path) -> Path:
    """A folder with some 100,000 characters that every machine has."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.txt").write_text(inspect.getsource(argparse), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared tokens of the small corpus."""
    root = tmp_path_factory.mktemp("models")
    prepare(str(write_text_corpus(root / "corpus")), root / "data", TINY_MODEL.vocab_size)
    return root / "data"


@pytest.fixture(scope="session")
def model_dir(data: Path) -> Path:
    """The small model, trained on `data`."""
    train(data, data.parent / "model", TINY_MODEL, TINY_TRAIN)
    return data.parent / "model"
