"""A model as PyTorch exports it, for any core: named arrays in one safetensors file, packed here for one core."""

import json
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.model.format import DecoderConfig

FORMAT = "wattbit decoder 1"


class Source(Protocol):
    """Where a model's tensors come from.

    bits: of each matrix of integers its width. group: the columns that share a scale, where not all of a row do.
    """

    config: DecoderConfig
    bits: dict[str, int]
    group: dict[str, int]
    shapes: dict[str, tuple[int, int]]

    def load(self, name: str) -> NDArray[Any]:
        """A tensor [rows, depth]: int8 for matrices of integers, int32 or float32."""
        ...


class SourceFile:
    """The file that wattbit.models.portable writes; tensors are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, framework="np") as file:
                about = file.metadata() or {}
                self.shapes = {name: _shape(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WattbitError(f"{path} is no exported model ({error}); export it again") from None
        if about.get("format") != FORMAT:
            raise WattbitError(f"{path} has format {about.get('format')}, not {FORMAT}; export it again")
        try:
            config, bits, group = (json.loads(about[name]) for name in ("config", "bits", "group"))
        except (KeyError, ValueError) as error:
            raise WattbitError(f"{path} does not describe its model ({error}); export it again") from None
        self.config = DecoderConfig.from_json(config)
        self.bits: dict[str, int] = bits
        self.group: dict[str, int] = group

    def load(self, name: str) -> NDArray[Any]:
        with safe_open(self._path, framework="np") as file:
            array: NDArray[Any] = file.get_tensor(name)
        return array.reshape(self.shapes[name])


def _shape(shape: list[int]) -> tuple[int, int]:
    """Vectors are columns."""
    return (shape[0], 1) if len(shape) == 1 else (shape[0], shape[1])
