"""The finished steps of one co-training, one file each: a step whose file exists is not done again."""

from collections.abc import Callable, Sequence
from math import isclose
from pathlib import Path
from typing import Any

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import Allocation, Learner
from wattbit.progress import Progress


class Steps:
    """Steps on a learner under a folder.

    Every step begins by loading the weights it starts from, so that it gives the same whether or not the run was
    interrupted before it. A chain is a sequence of fine-tunings from the float weights; its link n is its weights
    after n of them, and link 0 is the same for all.
    """

    def __init__(self, learner: Learner, folder: Path, inputs: Any, progress: Progress, total: int) -> None:
        """Keep the learner's weights as the float weights on the first run; see on later runs that they are the same.

        inputs: JSON of all that the steps depend on beside the weights. total: number of steps, for the progress.
        Raises WattbitError if the folder holds steps of other inputs or other weights.
        """
        self._learner = learner
        self._folder = folder
        self._progress = progress
        self._total = total
        self._done = 0
        if self._record("inputs", lambda: inputs) != inputs:
            raise WattbitError(f"{folder} holds co-training with other settings; delete it or take another run folder")
        now = learner.perplexity(None)
        if not self.weights("", 0).exists():
            learner.save(self.weights("", 0))
        self.float_perplexity = float(self._record("float", lambda: {"perplexity": now})["perplexity"])
        if not isclose(now, self.float_perplexity, rel_tol=1e-4):
            raise WattbitError(
                f"{folder} began from weights of perplexity {self.float_perplexity:.4f}, but the learner's have"
                f" {now:.4f}; open the model it began from, or delete the folder"
            )

    def weights(self, chain: str, link: int) -> Path:
        return self._folder / (f"{chain}-{link}.safetensors" if link else "float.safetensors")

    def at(self, weights: Path) -> Learner:
        """The learner, with these weights."""
        self._learner.load(weights)
        return self._learner

    def step(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON value of a step: read if its file is there, else made and written."""
        value = self._record(name, make)
        self._advance()
        return value

    def finetune(self, chain: str, link: int, allocations: Sequence[Allocation], steps: int, seed: int) -> Path:
        """The weights of a chain's link, made from the link before by fine-tuning at these widths in turn."""
        weights = self.weights(chain, link)
        if not weights.exists():
            learner = self.at(self.weights(chain, link - 1))
            learner.finetune_over(allocations, steps, seed)
            learner.save(weights)
        self._advance()
        return weights

    def _record(self, name: str, make: Callable[[], Any]) -> Any:
        path = self._folder / f"{name}.json"
        if not path.exists():
            write_json(path, make())
        return read_json(path)

    def _advance(self) -> None:
        self._done += 1
        self._progress("co-training", self._done, self._total)
