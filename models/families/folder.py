"""A quantized model's folder, which stands alone and appears file by file, so that interrupted work goes on:

wattbit.json                  what was asked for and, once the folder is whole, what came of it
config.json, tokenizer*, ...  the checkpoint's own
rest-NNNNN.safetensors        all tensors but the experts', under the checkpoint's names, one a shard
experts-NNNNN.safetensors     packed experts (see wattbit.models.packed), one a mixture layer
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors.torch import save_file

from wattbit.errors import WattbitError
from wattbit.files import atomic, digest_json, read_json, write_json
from wattbit.models.checkpoint import CONFIG, INDEX, Checkpoint
from wattbit.models.packed import PackedExpert, load_experts, save_experts
from wattbit.plan import ExpertId
from wattbit.progress import Progress, silent
from wattbit.recipe import Recipe

RECORD = "wattbit.json"
FORMAT = "wattbit checkpoint 1"
EXPERTS = ".experts."  # in the names of experts' tensors, on disk and in the network
END_BYTES = 1 << 20
COPIED = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class QuantizedFolder:
    """Its record is `{"format", "asked": {...}, "result": {...} or None}`."""

    folder: Path

    @classmethod
    def begin(cls, out: Path, checkpoint: Checkpoint, recipe: Recipe, about: Mapping[str, Any]) -> Self:
        """A new folder, or one that the same work left unfinished. about: what else the experts depend on."""
        asked = {"recipe": recipe.to_json(), "weights": digest_of(checkpoint), **about}
        if (out / RECORD).is_file():
            if cls(out)._record["asked"] != asked:
                raise WattbitError(f"{out} holds another quantization; give another folder or delete that one")
        elif out.exists() and any(out.iterdir()):
            raise WattbitError(f"{out} is not empty and holds no quantized model; give another folder")
        else:
            write_json(out / RECORD, {"format": FORMAT, "asked": asked, "result": None})
        return cls(out)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """A whole one; WattbitError for one that is unfinished."""
        found = cls(folder)
        if found.result is None:
            raise WattbitError(f"{folder} is unfinished; run its `wattbit quantize` again, which goes on from there")
        return found

    @property
    def result(self) -> dict[str, Any] | None:
        return self._record["result"]

    @property
    def recipe(self) -> Recipe:
        return Recipe.from_json(self._record["asked"]["recipe"])

    @property
    def _record(self) -> dict[str, Any]:
        record = read_json(self.folder / RECORD)
        found = record.get("format") if isinstance(record, dict) else None
        if found != FORMAT:
            raise WattbitError(f"{self.folder / RECORD} is of format {found!r}, not {FORMAT!r}; quantize anew")
        return record

    def copy_rest(self, checkpoint: Checkpoint, progress: Progress = silent) -> None:
        """Everything but the experts, one shard in memory at a time."""
        for pattern in COPIED:
            for path in checkpoint.folder.glob(pattern):
                if path.name not in (INDEX, RECORD):
                    with atomic(self.folder / path.name) as temporary:
                        shutil.copyfile(path, temporary)
        shards = sorted(set(checkpoint.files.values()))
        for i, shard in enumerate(shards):
            path = self.folder / f"rest-{i:05}.safetensors"
            names = [name for name, file in checkpoint.files.items() if file == shard and EXPERTS not in name]
            if names and not path.is_file():
                with atomic(path) as temporary:
                    save_file({name: checkpoint.read(name, checkpoint.shapes[name]) for name in names}, temporary)
            progress("copy", i + 1, len(shards))

    def has(self, layer: int) -> bool:
        return self._experts(layer).is_file()

    def write(self, layer: int, experts: Mapping[ExpertId, PackedExpert]) -> None:
        save_experts(self._experts(layer), experts)

    def read(self, layer: int, device: str = "cpu") -> dict[ExpertId, PackedExpert]:
        return load_experts(self._experts(layer), device)

    def abandon(self) -> None:
        """Remove the folder where no layer was finished: other work may have it."""
        if not any(self.folder.glob("experts-*.safetensors")):
            shutil.rmtree(self.folder)

    def finish(self, result: Mapping[str, Any]) -> None:
        write_json(self.folder / RECORD, self._record | {"result": dict(result)})

    def checkpoint(self) -> Checkpoint:
        """The tensors that are not experts'."""
        return Checkpoint.of(self.folder, sorted(self.folder.glob("rest-*.safetensors")))

    def _experts(self, layer: int) -> Path:
        return self.folder / f"experts-{layer:05}.safetensors"


def digest_of(checkpoint: Checkpoint) -> str:
    """Tells checkpoints apart without reading them whole: configuration, and each shard's size and its ends."""
    ends = [(shard.name, shard.stat().st_size, *_ends(shard)) for shard in sorted(set(checkpoint.files.values()))]
    return digest_json([checkpoint.config, ends])


def _ends(path: Path) -> tuple[str, str]:
    with path.open("rb") as stream:
        first = stream.read(END_BYTES)
        stream.seek(-min(END_BYTES, path.stat().st_size), 2)
        return hashlib.sha256(first).hexdigest(), hashlib.sha256(stream.read()).hexdigest()


def is_quantized(source: str | Path) -> bool:
    return (Path(source) / RECORD).is_file() and (Path(source) / CONFIG).is_file()
