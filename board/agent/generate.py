"""Text generation on the board: the whole model decodes in C; experts that have an FPGA engine run there, unless told
not to.
"""

import importlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wattbit.errors import WattbitError
from wattbit.plan import ExpertId

OnFpga = Callable[[list[str], NDArray[np.int8]], NDArray[np.int8]]
"""Outputs [N, D] of the named experts [N] for inputs [N, D]."""


class Generator:
    """The decoder of a verified bundle, and the sequence that it is in."""

    def __init__(self, bundle: Path, manifest: dict[str, Any], on_fpga: OnFpga) -> None:
        record = manifest.get("decoder")
        if record is None:
            raise WattbitError("the bundle has no decoder; run `wattbit export`, build and deploy again")
        self._module = importlib.import_module(record["module"])
        self._decoder = self._module.Decoder(bundle / record["folder"], check=False)
        self._tokens: Iterator[int] = iter(())
        self._engines = {name: expert["engine"] for name, expert in manifest["experts"].items()}
        self._on_fpga = on_fpga

    def begin(
        self, prompt: list[int], temperature: float, top_k: int, seed: int, on_cores: Collection[str] = ()
    ) -> None:
        """Start anew with a prompt. on_cores: experts that run on the cores although they have an engine."""
        strange = sorted(set(on_cores) - set(self._engines))
        if strange:
            raise WattbitError(f"the bundle has no expert {strange[0]}; it belongs to another model")

        def elsewhere(experts: Sequence[ExpertId], x: NDArray[np.int8]) -> NDArray[np.int8]:
            return self._on_fpga([str(expert) for expert in experts], x)

        placed = {name for name, engine in self._engines.items() if engine is not None}
        if placed:
            self._decoder.place([ExpertId.parse(name) for name in sorted(placed - set(on_cores))], elsewhere)
        self._decoder.reset()
        sampling = self._module.Sampling(temperature, top_k, seed)
        self._tokens = self._decoder.generate(prompt, self._decoder.config.context, sampling)

    def more(self, count: int) -> list[int]:
        """Up to `count` further tokens; fewer when the context is full."""
        return [token for _, token in zip(range(count), self._tokens)]  # noqa: B905  # either may end first

    def close(self) -> None:
        """End the decoder's threads."""
        self._decoder.close()
