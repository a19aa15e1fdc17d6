"""What is refused when a checkpoint is opened, in one line that names the remedy; and what is read."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hf_support import CONFIGS, checkpoint, transformers_model
from wattbit.errors import WattbitError
from wattbit.models.checkpoint import INDEX, Checkpoint, read_header
from wattbit.models.families.open import load_network, open_model, open_network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint("mixtral", tmp_path / "model")


def refuse(folder: Path | str, *words: str) -> None:
    with pytest.raises(WattbitError) as caught:
        load_network(Checkpoint.open(folder))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("model-*.safetensors"))


def change_config(folder: Path, **changed: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changed
    (folder / "config.json").write_text(json.dumps(config))


def test_tensors_come_from_their_shards(folder: Path) -> None:
    found = Checkpoint.open(folder)
    assert len(set(found.files.values())) == len(shards(folder)) > 3
    for shard in shards(folder):
        for name, tensor in load_file(shard).items():
            assert found.files[name] == shard
            assert torch.equal(found.read(name, tuple(tensor.shape)), tensor)


def test_opening_reads_headers_alone(folder: Path) -> None:
    """Bytes of the tensors may be anything."""
    before = Checkpoint.open(folder).shapes
    for shard in shards(folder):
        data = bytearray(shard.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start:] = b"\xff" * (len(data) - start)
        shard.write_bytes(data)
    assert Checkpoint.open(folder).shapes == before


def test_one_file_without_an_index(tmp_path: Path) -> None:
    network = transformers_model("olmoe")
    network.save_pretrained(tmp_path)
    assert not (tmp_path / INDEX).exists()
    assert open_network(tmp_path).expert_ids


def test_a_missing_shard(folder: Path) -> None:
    shards(folder)[1].unlink()
    refuse(folder, f"lacks shard {shards(folder)[0].name.replace('00001', '00002')}", "download it again")


def test_a_truncated_shard(folder: Path) -> None:
    shard = shards(folder)[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    refuse(folder, shard.name, "cannot be read", "again")


def test_a_shard_without_a_tensor_of_the_index(folder: Path) -> None:
    shard = shards(folder)[0]
    tensors = load_file(shard)
    gone = sorted(tensors)[0]
    del tensors[gone]
    save_file(tensors, shard)
    refuse(folder, shard.name, f"lacks tensor {gone} of {INDEX}")


def test_a_tensor_that_neither_index_nor_shard_has(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    shard = folder / index["weight_map"].pop(name)
    (folder / INDEX).write_text(json.dumps(index))
    tensors = load_file(shard)
    del tensors[name]
    save_file(tensors, shard)
    refuse(folder, f"has no tensor {name}", "download")


def test_a_misshapen_tensor(folder: Path) -> None:
    change_config(folder, intermediate_size=112)
    refuse(folder, "is of shape [96, 64], not [112, 64]", "different models")


def test_an_index_that_is_none(folder: Path) -> None:
    (folder / INDEX).write_text("{}")
    refuse(folder, INDEX, "weight_map", "again")
    (folder / INDEX).write_text("{")
    refuse(folder, INDEX, "is not JSON")


def test_an_index_that_leads_outside(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    refuse(folder, "'../elsewhere.safetensors'", "outside of its folder")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickles_are_refused_unread(folder: Path, name: str) -> None:
    for path in [*shards(folder), folder / INDEX]:
        path.unlink()
    (folder / name).write_bytes(b"not even a pickle")
    refuse(folder, f"pickled weights ({name})", "convert them to safetensors")


def test_a_folder_that_is_no_checkpoint(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "has no config.json")
    for path in [*shards(folder), folder / INDEX]:
        path.unlink()
    refuse(folder, "neither", "model.safetensors", "whole checkpoint")


def test_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    for nowhere in (str(tmp_path / "nowhere"), "./nowhere", "../nowhere", "a..b/c"):
        refuse(nowhere, f"{nowhere} is neither a folder nor a hub id like")


def test_a_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refuse("someone/some-model", "someone/some-model cannot be downloaded", "give a folder")


def test_pickles_of_the_hub_are_refused_before_a_download(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    monkeypatch.setattr("wattbit.models.checkpoint.HfApi.list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr("wattbit.models.checkpoint.snapshot_download", pytest.fail)
    refuse("google/switch-base-8", "google/switch-base-8 holds pickled weights", "convert")


def test_a_hub_id_is_downloaded_without_anything_that_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[tuple[str, str | None], list[str]] = {}

    def download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked[name, revision] = allow_patterns
        return str(folder)

    names = [*(path.name for path in folder.iterdir()), "modeling.py", "x.bin"]
    monkeypatch.setattr("wattbit.models.checkpoint.HfApi.list_repo_files", lambda *_, **__: names)
    monkeypatch.setattr("wattbit.models.checkpoint.snapshot_download", download)
    assert Checkpoint.open("someone/some-model").folder == folder
    assert Checkpoint.open("someone/some-model@refs/pr/4").folder == folder
    assert asked.keys() == {("someone/some-model", None), ("someone/some-model", "refs/pr/4")}
    assert not any(pattern.endswith((".py", ".bin", "*")) for patterns in asked.values() for pattern in patterns)


def test_an_unknown_architecture(folder: Path) -> None:
    change_config(folder, model_type="jamba")
    refuse(folder, "jamba", "does not know", "deepseek_v2", "mixtral", "olmoe", "qwen3_moe", "switch_transformers")


def test_no_mixture_layers(folder: Path, tmp_path: Path) -> None:
    config = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if "experts" not in k}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    refuse(folder, "llama", "no MoE layers")
    dense = checkpoint("qwen2_moe", tmp_path / "dense", mlp_only_layers=[0, 1, 2])
    refuse(dense, "no MoE layers", "dense")


def test_quantized_already(folder: Path) -> None:
    change_config(folder, quantization_config={"quant_method": "fp8"})
    refuse(folder, "quantized already (fp8)", "16-bit")
    change_config(folder, quantization_config=None)
    assert open_network(folder).expert_ids


@pytest.mark.parametrize("model_type", [[], {}, 3, None])
def test_an_architecture_without_a_name(folder: Path, model_type: object) -> None:
    change_config(folder, model_type=model_type)
    refuse(folder, f"is a {model_type}, which wattbit does not know")


def test_no_tokenizer(folder: Path) -> None:
    with pytest.raises(WattbitError, match="no tokenizer that can be read"):
        open_model(folder)


def test_a_header_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"\x80\x04" * 40)
    with pytest.raises(WattbitError, match="cannot be read"):
        read_header(tmp_path / "x.safetensors")


def test_sizes_of_the_tests_are_small() -> None:
    assert all(sum(p.numel() for p in transformers_model(name).parameters()) < 300_000 for name in CONFIGS)
