"""Training in several processes, one a GPU. torchrun starts them, gradients are averaged (DistributedDataParallel).

    torchrun --nproc-per-node 2 -m wattbit.models.distributed DATA OUT MODEL.json TRAIN.json

Every process draws the step's whole batch and keeps its share of it, so that the number of processes changes the order
of float sums and nothing else: the same configuration gives the same loss curve, within rounding, on one and on eight.
(The load-balancing loss is a product of means over a process's own tokens, as in the Switch Transformer's.)
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from wattbit.errors import ToolError, WattbitError
from wattbit.files import read_json, write_json
from wattbit.models.config import ModelConfig, TrainConfig
from wattbit.progress import Progress, silent

PATIENCE = timedelta(days=7)  # others wait while the first searches; torchrun ends them all when one fails
OURS = "wattbit: "  # begins the lines that a process says its progress and its own error in


@dataclass(frozen=True)
class Group:
    """The processes that train one model, seen from one of them, and the device that this one computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def share(self, contexts: Tensor) -> Tensor:
        """This process's contexts [B / size, S + 1] of a step's [B, S + 1], on its device."""
        return contexts[self.rank :: self.size].to(self.device)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network, with gradients averaged over the processes by each backward pass."""
        return DistributedDataParallel(network) if self.size > 1 else network

    def tell(self, message: bytes) -> bytes:
        """The first process's message, in every process."""
        if self.size == 1:
            return message
        size = torch.tensor(len(message), device=self.device)
        dist.broadcast(size, 0)
        data = torch.zeros(int(size), dtype=torch.uint8, device=self.device)
        if self.first:
            data.copy_(torch.frombuffer(bytearray(message), dtype=torch.uint8))
        dist.broadcast(data, 0)
        return bytes(data.cpu().numpy())

    def mean(self, value: float) -> float:
        """Mean of a value over the processes."""
        if self.size == 1:
            return value
        total = torch.tensor(value, device=self.device, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item() / self.size


def choose_device(name: str) -> torch.device:
    """cpu, cuda, or auto: cuda where there is one. WattbitError for cuda where there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise WattbitError("device is cuda, but PyTorch sees no GPU; take device auto or cpu")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextmanager
def group(train: TrainConfig) -> Iterator[Group]:
    """The processes that torchrun started this one among; this one alone without torchrun."""
    device = choose_device(train.device)
    if "LOCAL_RANK" not in os.environ:
        yield Group(0, 1, device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        check_share(train.batch, dist.get_world_size())
        yield Group(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def check_share(batch: int, processes: int) -> None:
    if batch % processes:
        raise WattbitError(f"a batch of {batch} cannot be shared by {processes} processes; make it a multiple")


def processes_for(train: TrainConfig) -> int:
    """How many processes this machine trains with: one a GPU; one inside torchrun, which has started the others."""
    inside = "LOCAL_RANK" in os.environ
    return 1 if inside or choose_device(train.device).type == "cpu" else torch.cuda.device_count()


def launch(
    data: Path, out: Path, model: ModelConfig, train: TrainConfig, processes: int, progress: Progress = silent
) -> None:
    """Train in `processes` processes of this machine; raises what they raise."""
    check_share(train.batch, processes)
    with TemporaryDirectory() as folder:
        settings = [Path(folder) / f"{name}.json" for name in ("model", "train")]
        for path, config in zip(settings, (model, train), strict=True):
            write_json(path, config.to_json())
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        launcher.append(f"--log-dir={folder}")  # else torchrun leaves an empty one behind
        command = [sys.executable, *launcher, "-m", __name__, *map(str, (data, out, *settings))]
        log = Path(folder) / "stderr"
        with log.open("w") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as running:
            for line in running.stdout or ():
                if line.startswith(OURS.encode()):  # libraries write lines of their own
                    what, done, total = line.decode().removeprefix(OURS).split()
                    progress(what, int(done), int(total))
        said = log.read_text(encoding="utf-8", errors="replace")
    if running.returncode:
        ours = [line.removeprefix(OURS) for line in said.splitlines() if line.startswith(OURS)]
        raise WattbitError(ours[0]) if ours else ToolError(command, running.returncode, said)


def main(data: str, out: str, model: str, train: str) -> None:
    """What every process runs."""
    from wattbit.models.train import train as train_float

    def say(what: str, done: int, total: int) -> None:
        if os.environ["RANK"] == "0":
            print(f"{OURS}{what} {done} {total}", flush=True)

    configs = [read_json(Path(path)) for path in (model, train)]
    try:
        train_float(Path(data), Path(out), ModelConfig.from_json(configs[0]), TrainConfig.from_json(configs[1]), say)
    except WattbitError as error:
        sys.exit(f"{OURS}{error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
