"""Training in several processes: the same curve as in one, and one line where it cannot work."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.models_support import TINY_MODEL, TINY_TRAIN
from wattbit.errors import WattbitError
from wattbit.files import read_json
from wattbit.models.distributed import choose_device, launch
from wattbit.models.network import grouped
from wattbit.models.train import train

pytest_plugins = ["tests.models_support"]


def test_two_processes_give_the_loss_curve_of_one_with_the_whole_batch(data: Path, model_dir: Path, tmp_path: Path):
    seen: list[int] = []
    launch(data, tmp_path, TINY_MODEL, TINY_TRAIN, 2, lambda what, done, total: seen.append(done))
    assert seen == list(range(1, TINY_TRAIN.steps + 1))
    one, two = read_json(model_dir / "train.json"), read_json(tmp_path / "train.json")
    for (step, alone), (_, together) in zip(one["loss"], two["loss"], strict=True):
        assert together == pytest.approx(alone, abs=0.02), step  # routing near a tie may go either way
    assert two["loss"][0][1] == pytest.approx(one["loss"][0][1], abs=1e-5)
    assert two["valid_perplexity"] == pytest.approx(one["valid_perplexity"], rel=0.02)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float.safetensors", "train.json"]


def test_what_processes_raise_is_raised_here_in_one_line(data: Path, tmp_path: Path):
    with pytest.raises(WattbitError, match=r"a batch of 9 cannot be shared by 2 processes; make it a multiple"):
        launch(data, tmp_path, TINY_MODEL, replace(TINY_TRAIN, batch=9), processes=2)
    with pytest.raises(WattbitError, match=r"^vocab_size is 301 in the model"):
        launch(data, tmp_path, replace(TINY_MODEL, vocab_size=301), TINY_TRAIN, processes=2)


def test_what_libraries_write_beside_the_progress_is_passed_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    torchrun, seen = tmp_path / "torchrun", []
    torchrun.write_text("#!/bin/sh\necho NCCL version 2\necho wattbit: train 1 2\necho\nprintf '\\377\\n'\n")
    torchrun.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(torchrun))
    launch(data, tmp_path, TINY_MODEL, TINY_TRAIN, 2, lambda *step: seen.append(step))
    assert seen == [("train", 1, 2)]


def test_bfloat16_training_learns_as_float32_does(data: Path, model_dir: Path, tmp_path: Path):
    record = train(data, tmp_path, TINY_MODEL, replace(TINY_TRAIN, bf16=True))
    assert record["valid_perplexity"] == pytest.approx(read_json(model_dir / "train.json")["valid_perplexity"], rel=0.1)


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(WattbitError, match=r"device must be cpu, cuda or auto, not 'tpu'"):
        replace(TINY_TRAIN, device="tpu")
    if not torch.cuda.is_available():
        assert choose_device("auto").type == "cpu"
        with pytest.raises(WattbitError, match="PyTorch sees no GPU; take device auto or cpu"):
            choose_device("cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_the_batched_product_of_a_gpu_equals_one_product_an_expert():
    x, weights = torch.randn(30, 8), torch.randn(4, 5, 8)
    counts = [3, 0, 20, 7]
    found = grouped(x.cuda(), counts, weights.cuda()).cpu()
    torch.testing.assert_close(found, grouped(x, counts, weights), rtol=1e-4, atol=1e-4)
