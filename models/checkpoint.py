"""Hugging Face checkpoints: a folder or a hub id, read tensor by tensor across its safetensors shards."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is HTTPX's own
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.files import read_json

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")  # a revision may follow
WANTED = ("*.safetensors", "*.json", "*.txt", "*.model")  # weights, configuration, vocabulary


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A folder of safetensors shards. Nothing but the shards' headers is read until a tensor is asked for.

    files: the shard of each tensor. shapes: as the headers give them.
    """

    folder: Path
    config: dict[str, Any]
    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, source: str | Path) -> Self:
        """A checkpoint folder, or the hub's repository of that id (NAME or NAME@REVISION), which is downloaded once.

        Raises WattbitError for a folder that is no checkpoint, pickled weights, shards that are missing or broken, and
        an index that does not agree with them.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = _download(str(source))
        if not (folder / CONFIG).is_file():
            raise WattbitError(f"{folder} has no {CONFIG}: it is no checkpoint; give a folder of save_pretrained's")
        found = cls.of(folder, _shards(folder))
        if (folder / INDEX).is_file():
            found._check_index()
        return found

    @classmethod
    def of(cls, folder: Path, shards: Sequence[Path]) -> Self:
        """What those files of a folder hold."""
        config = read_json(folder / CONFIG)
        if not isinstance(config, dict):
            raise WattbitError(f"{folder / CONFIG} is no JSON object; download it again")
        headers = {path: read_header(path) for path in shards}
        files = {name: path for path, header in headers.items() for name in header}
        shapes = {name: shape for header in headers.values() for name, shape in header.items()}
        return cls(folder, config, files, shapes)

    def _check_index(self) -> None:
        for tensor, name in _weight_map(self.folder).items():
            if self.files.get(tensor) != self.folder / name:
                raise WattbitError(f"{self.folder / name} lacks tensor {tensor} of {INDEX}; download that shard again")

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def check_context(self, tokens: int) -> None:
        """Raise WattbitError for more tokens in a row than the model has positions; T5's relative ones have no end."""
        positions = self.config.get("max_position_embeddings")
        if isinstance(positions, int) and tokens > positions:
            raise WattbitError(f"{tokens} tokens are beyond the {positions} positions of {self.folder}; ask for fewer")

    def headers(self) -> "Headers":
        """The same without its tensors."""
        return Headers(self.folder, self.config, self.files, self.shapes)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """One tensor, which must have that shape."""
        self.check(name, shape)
        with safe_open(self.files[name], framework="pt") as shard:
            tensor: Tensor = shard.get_tensor(name)
        return tensor

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise WattbitError for a tensor that is not there, or of another shape."""
        if name not in self.files:
            raise WattbitError(f"{self.folder} has no tensor {name}; its weights are not whole, download them again")
        if self.shapes[name] != shape:
            raise WattbitError(
                f"tensor {name} of {self.files[name]} is of shape {list(self.shapes[name])}, not {list(shape)}; "
                f"weights and {CONFIG} are of different models"
            )


class Headers(Checkpoint):
    """A checkpoint of which only headers are read: its tensors are on the meta device."""

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self.check(name, shape)
        return torch.empty(shape, device="meta")


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as shard:
            return {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118  # no dict
    except (SafetensorError, OSError) as error:
        raise WattbitError(f"{path} cannot be read ({error}); download or copy that shard again") from None


def _shards(folder: Path) -> list[Path]:
    """The shards that the folder should have, all of them there."""
    if (folder / INDEX).is_file():
        names = sorted(set(_weight_map(folder).values()))
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise WattbitError(f"{folder} lacks shard {missing[0]} ({len(missing)} of {len(names)}); download it again")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    refuse_pickles(str(folder), [path.name for path in sorted(folder.iterdir())])
    raise WattbitError(f"{folder} has neither {INDEX} nor {SINGLE}; give a folder with a whole checkpoint")


def _weight_map(folder: Path) -> dict[str, str]:
    index = read_json(folder / INDEX)
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise WattbitError(f"{folder / INDEX} has no weight_map of tensor to shard; download it again")
    if outside := [name for name in found.values() if Path(name).name != name]:
        raise WattbitError(f"{folder / INDEX} names {outside[0]!r}, which is outside of its folder; do not trust it")
    return found


def refuse_pickles(where: str, names: list[str]) -> None:
    """Raise WattbitError if the only weights among files of these names are pickled."""
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickles := [name for name in names if name.endswith(PICKLES)]:
        raise WattbitError(
            f"{where} holds pickled weights ({pickles[0]}), which can run code when they are read; convert them to "
            "safetensors (Hugging Face's `convert` space does) or take a revision that has them: NAME@refs/pr/1"
        )


def _download(source: str) -> Path:
    """The folder of a hub's repository, safetensors only."""
    unknown = WattbitError(f"{source} is neither a folder nor a hub id like mistralai/Mixtral-8x7B-v0.1")
    if not (match := HUB_ID.fullmatch(source)):
        raise unknown
    name, revision = match.groups()
    fetch = partial(snapshot_download, name, revision=revision, allow_patterns=list(WANTED))
    try:
        refuse_pickles(source, HfApi().list_repo_files(name, revision=revision))
        return Path(fetch())
    except HFValidationError:
        raise unknown from None
    except RepositoryNotFoundError:
        raise WattbitError(f"the hub has no model {source}, or it asks for a login: `hf auth login`") from None
    except (HTTPError, OSError) as error:
        return _downloaded_before(source, fetch, error)


def _downloaded_before(source: str, fetch: Callable[..., str], error: Exception) -> Path:
    try:
        return Path(fetch(local_files_only=True))
    except OSError:
        raise WattbitError(f"{source} cannot be downloaded ({error}); connect, or give a folder") from None
