"""Small models for the tests of wattbit.tvm_schedules.model, built once for a core."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wattbit.models.config import GatedConfig
from wattbit.models.decode import Logits
from wattbit.models.gated import GatedModel, quantize, shapes
from wattbit.models.portable import Portable
from wattbit.plan import Allocation, Engine, ExpertId, Placement, Precision
from wattbit.tvm_schedules.cores import Core, host_core
from wattbit.tvm_schedules.model.pack import build, kernels_of, link, pack
from wattbit.tvm_schedules.model.source import SourceFile

torch.set_num_threads(1)

# One of each family, small: grouped queries; norms of queries and keys, gates as they are; biases, a shared expert.
MIXTRAL = GatedConfig(300, 64, 96, 2, 8, 2, 8, 4, 2, 160)
OLMOE = GatedConfig(300, 64, 32, 2, 4, 4, 16, 16, 4, 160, renormalize=False, qk_norm="whole")
QWEN = GatedConfig(
    300, 48, 40, 2, 4, 2, 10, 6, 3, 160, qk_norm="head", qkv_bias=True, shared_hidden=56, tied_head=True, norm_eps=1e-6
)
FAMILIES = {"mixtral": (MIXTRAL, None), "olmoe": (OLMOE, 32), "qwen": (QWEN, None)}
WIDTHS = (2, 8, 3, 6, 4, 5, 7)


def allocations(experts: tuple[ExpertId, ...], engine: Engine = "arm") -> dict[str, Allocation]:
    """Two uniform ones and one of every width."""
    mixed = {expert: WIDTHS[i % len(WIDTHS)] for i, expert in enumerate(experts)}
    return {
        "uniform8": Allocation.of(dict.fromkeys(experts, 8), engine=engine),
        "uniform4": Allocation.of(dict.fromkeys(experts, 4), engine=engine),
        "mixed": Allocation.of(mixed, engine=engine),
    }


def random_weights(config: GatedConfig, seed: int) -> dict[str, Tensor]:
    """Float weights of an untrained model: matrices of variance 1 / in, norms near 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) == 2:
            return values * shape[1] ** -0.5
        return values * 0.1 if name.endswith(".bias") else 1 + values * 0.1

    return {name: draw(name, shape) for name, shape in shapes(config).items()}


def gated_model(family: str, allocation: str = "mixed", seed: int = 0) -> GatedModel:
    config, group_size = FAMILIES[family]
    chosen = allocations(config.expert_ids)[allocation]
    return quantize(config, random_weights(config, seed), chosen, group_size=group_size)


def agreement(logits: Logits, prompt: Sequence[int], continuation: Sequence[int]) -> int:
    """How many tokens of a continuation are what `wattbit.models.decode.greedy` gives, up to the first that is not."""
    tokens = torch.tensor([*prompt, *continuation])
    likeliest = logits(tokens[:-1])[len(prompt) - 1 :].argmax(dim=-1)
    same = (likeliest == tokens[len(prompt) :]).tolist()
    return same.index(False) if False in same else len(same)


def build_host(portable: Portable, out: Path) -> Path:
    """A folder with the model for this machine. Each needs a name of its own: a library is loaded by its path once."""
    portable.save(out / "decoder.safetensors")
    build(SourceFile(out / "decoder.safetensors"), host_core().name, out)
    return out


@dataclass(frozen=True)
class Program:
    """A static program of runtime and weights for one core; see model/generate.c."""

    command: list[str]
    weights: Path

    @classmethod
    def build(cls, portable: Portable, core: Core, emulator: list[str], out: Path) -> "Program":
        portable.save(out / "decoder.safetensors")
        source = SourceFile(out / "decoder.safetensors")
        link(kernels_of(source), core, out / "generate", program=True)
        pack(source, core, out / "model.wattbit")
        return cls([*emulator, str(out / "generate")], out / "model.wattbit")

    def run(self, prompt: list[int], count: int, threads: int = 1, sampling: tuple[float, int, int] = (0, 0, 0)) -> str:
        """A line for each token: the token and a checksum of its logits."""
        words = [self.weights, threads, count, *sampling, *prompt]
        done = subprocess.run([*self.command, *map(str, words)], capture_output=True, text=True, check=True)
        return done.stdout


def mixed_engines(experts: tuple[ExpertId, ...]) -> Allocation:
    """Three widths; every other expert on the FPGA."""
    return Allocation(
        tuple(
            Placement(expert, "fpga" if i % 2 else "arm", Precision(WIDTHS[i % 3])) for i, expert in enumerate(experts)
        )
    )
