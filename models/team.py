"""Fine-tuning by several processes, on one machine or more, that torchrun started.

    torchrun --nproc-per-node 2 --no-python -- wattbit cotrain --run RUN

The first process does everything else (searches, statistics, perplexities, files); the others wait for it and join its
fine-tunings, each with its share of every step's contexts and gradients averaged over all (DistributedDataParallel), so
that their number changes the order of float sums and nothing else. (But for the load-balancing loss, a product of means
over a process's own tokens, as in `wattbit.models.distributed`.)
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from wattbit.models.distributed import group
from wattbit.models.learner import MoELearner
from wattbit.models.scales import ExpertScales
from wattbit.plan import Allocation, ExpertId, Precision
from wattbit.progress import Progress, silent

DONE = b"done"


class TeamLearner(MoELearner):
    """A learner whose fine-tunings the same learner of torchrun's other processes joins; alone without torchrun."""

    @contextmanager
    def together(self) -> Iterator[bool]:
        """Whether this is the first process, as long as the block lasts, at whose end the others are let go.

        In the others the block begins when the first one's has ended.
        """
        with group(replace(self.train_config, device=self.network.device.type)) as self.processes:
            if not self.processes.first:
                self._follow()
                yield False
                return
            try:
                yield True
            finally:
                self.processes.tell(DONE)

    def finetune_over(
        self, allocations: Sequence[Allocation], steps: int, seed: int, progress: Progress = silent
    ) -> None:
        """`MoELearner.finetune_over`; the first process tells the others at what and with which scales. The wrapping of
        its network gives them its weights."""
        if self.processes.first:
            used = {(p.expert, p.precision) for allocation in allocations for p in allocation.placements}
            said = {f"{e}.{bits}": torch.from_numpy(self.scales(e, bits).to_array()) for e, bits in used}
            job = json.dumps([[allocation.to_json() for allocation in allocations], steps, seed])
            said["job"] = torch.frombuffer(bytearray(job.encode()), dtype=torch.uint8)
            self.processes.tell(to_bytes(said))
        super().finetune_over(allocations, steps, seed, progress)

    def _follow(self) -> None:
        """Join the first process's fine-tunings until it is done."""
        while (said := self.processes.tell(b"")) != DONE:
            tensors = from_bytes(said)
            allocations, steps, seed = json.loads(bytes(tensors.pop("job").numpy()))
            scales = {}
            for name, array in tensors.items():
                expert, _, precision = name.partition(".")
                key = ExpertId.parse(expert), Precision.parse(precision)
                scales[key] = ExpertScales.from_array(key[1], array.numpy(), self.config.d_hidden)
            self.adopt(scales)
            self.finetune_over([Allocation.from_json(one) for one in allocations], steps, seed)
