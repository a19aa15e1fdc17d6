"""Float training, in one process or several (see `wattbit.models.distributed`).

Deterministic on a CPU: the same data, configuration and thread count give the same weights, also when interrupted and
resumed in between. On a GPU attention's backward pass sums in no fixed order, so two runs agree to rounding only.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_bytes, write_json
from wattbit.models.config import ModelConfig, TrainConfig
from wattbit.models.distributed import Group, group, launch, processes_for
from wattbit.models.network import Experts, Transformer, token_losses
from wattbit.models.sample import Samples, draw
from wattbit.progress import Progress, silent

CHECKPOINT_STEPS = 100
CURVE_STEPS = 20  # between two points of the loss curve
CLIP = 1.0  # norm of a step's gradient, at most


def train(data: Path, out: Path, model: ModelConfig, train: TrainConfig, progress: Progress = silent) -> dict[str, Any]:
    """Write `float.safetensors` and `train.json` to `out`; return the latter's content.

    Resumes from `checkpoint.safetensors` there if an earlier call was interrupted. Raises WattbitError if the
    vocabulary is another one, the data is too short, or `out` holds another model.
    """
    record = read_json(data / "data.json")
    if record["vocab_size"] != model.vocab_size:
        raise WattbitError(
            f"vocab_size is {model.vocab_size} in the model, {record['vocab_size']} in {data}; make them equal"
        )
    identity = {"data": record["digest"], "model": model.to_json(), "train": train.to_json()}
    if (out / "train.json").is_file() and (out / "float.safetensors").is_file():
        done: dict[str, Any] = read_json(out / "train.json")
        _same(identity, {key: done.get(key) for key in identity}, out)
        return done
    if (processes := processes_for(train)) > 1:
        launch(data, out, model, train, processes, progress)
        return dict(read_json(out / "train.json"))
    with group(train) as joined:
        return _train(data, out, identity, model, train, joined, progress)


def _train(
    data: Path,
    out: Path,
    identity: dict[str, Any],
    model: ModelConfig,
    train: TrainConfig,
    processes: Group,
    progress: Progress,
) -> dict[str, Any]:
    torch.set_num_threads(train.threads)
    samples = Samples.load(data, model.context)
    torch.manual_seed(train.seed)
    network = Transformer(model)
    initial_norms = router_norms(network)
    network.to(processes.device)
    wrapped = processes.wrap(network)
    optimizer = make_optimizer(network, train.learning_rate, train.weight_decay)
    checkpoint = out / "checkpoint.safetensors"
    curve: list[tuple[int, float]] = []
    start = 0
    if checkpoint.is_file():
        start, curve = _resume(checkpoint, identity, network, optimizer)
    for step in range(start, train.steps):
        optimizer.param_groups[0]["lr"] = train.learning_rate * schedule(step, train)
        contexts = processes.share(draw(samples.train, model.context, train.batch, train.seed, step))
        with torch.autocast(processes.device.type, torch.bfloat16, enabled=train.bf16):
            loss = train_step(wrapped, optimizer, contexts, train.balance)
        if step % CURVE_STEPS == 0 or step == train.steps - 1:
            curve.append((step, processes.mean(loss)))
        if processes.first and (step + 1) % CHECKPOINT_STEPS == 0 and step + 1 < train.steps:
            _save_checkpoint(checkpoint, identity, step + 1, curve, network, optimizer)
        progress("train", step + 1, train.steps)
    result = identity | {
        "loss": curve,
        "valid_perplexity": perplexity(network, samples.valid),
        "initial_router_norms": initial_norms,
    }
    if processes.first:
        write_model(out, network, result)
        checkpoint.unlink(missing_ok=True)
    return result


def write_model(out: Path, network: Transformer, record: dict[str, Any]) -> None:
    """Write the weights as `float.safetensors`, then the record as `train.json`, whose presence says that both are."""
    weights = safetensors_bytes(_named("network", network.state_dict()), metadata={"model": network.config.digest})
    write_bytes(out / "float.safetensors", weights)
    write_json(out / "train.json", record)


def router_norms(network: Transformer) -> list[list[float]]:
    """L2 norm of each router row, by layer."""
    return [block.mixture.router.weight.norm(dim=1).tolist() for block in network.layers]


def make_optimizer(network: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, foreach=True
    )


def train_step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    contexts: Tensor,
    balance: float,
    experts: Sequence[Experts] | None = None,
    teacher: "Teacher | None" = None,
) -> float:
    """One optimizer step on contexts [B, S + 1]; returns the cross-entropy in nats a token, which must be finite."""
    logits, routings = network(contexts[:, :-1], experts)
    loss = token_losses(logits, contexts[:, 1:]).mean()
    goal = loss if teacher is None else torch.lerp(loss, teacher.divergence(contexts, logits), teacher.weight)
    total = goal + balance * torch.stack([routing.balance for routing in routings]).sum()
    optimizer.zero_grad()
    total.backward()
    nn.utils.clip_grad_norm_(network.parameters(), CLIP)
    optimizer.step()
    if not math.isfinite(loss.item()):
        raise WattbitError(f"the loss became {loss.item()}; lower the learning rate")
    return loss.item()


@dataclass(frozen=True, eq=False)
class Teacher:
    """A float model whose predictions a step follows (distillation, arXiv 1503.02531, at temperature 1).

    weight: share of the divergence from it in the loss, the rest is the cross-entropy.
    """

    network: Transformer
    weight: float

    def divergence(self, contexts: Tensor, logits: Tensor) -> Tensor:
        """Mean over tokens of KL(teacher || student) in nats; contexts [B, S + 1], the student's logits [B, S, V]."""
        with torch.no_grad():
            wanted = self.network(contexts[:, :-1])[0].log_softmax(dim=-1)
        return F.kl_div(logits.log_softmax(dim=-1), wanted, reduction="none", log_target=True).sum(dim=-1).mean()


@torch.no_grad()
def perplexity(network: Transformer, contexts: Tensor, experts: Sequence[Experts] | None = None) -> float:
    """exp of the mean cross-entropy over contexts [n, S + 1]."""
    parts = (part.to(network.device) for part in contexts.split(32))
    losses = [token_losses(network(part[:, :-1], experts)[0], part[:, 1:]) for part in parts]
    return math.exp(torch.cat(losses).mean().item())


def schedule(step: int, train: TrainConfig) -> float:
    """Share of the learning rate: up linearly in the warm-up, then down linearly to zero."""
    return min((step + 1) / train.warmup_steps, (train.steps - step) / max(1, train.steps - train.warmup_steps))


def _same(identity: dict[str, Any], found: Any, where: Path) -> None:
    for key, value in identity.items():
        if found.get(key) != value:
            raise WattbitError(
                f"{where} belongs to another run (its {key} is {found.get(key)}); delete it or choose another"
            )


def _named(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}.{name}": value for name, value in tensors.items()}


def _save_checkpoint(
    path: Path,
    identity: dict[str, Any],
    step: int,
    curve: list[tuple[int, float]],
    network: Transformer,
    optimizer: torch.optim.Optimizer,
) -> None:
    tensors = _named("network", network.state_dict())
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    header = {"identity": json.dumps(identity), "step": str(step), "curve": json.dumps(curve)}
    write_bytes(path, safetensors_bytes(tensors, metadata=header))


def _resume(
    path: Path, identity: dict[str, Any], network: Transformer, optimizer: torch.optim.Optimizer
) -> tuple[int, list[tuple[int, float]]]:
    """Put the checkpoint's state into network and optimizer; return its step and loss curve."""
    try:
        with safe_open(path, framework="pt") as header_of:
            header = header_of.metadata()
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WattbitError(f"{path} cannot be read ({error}); delete it to train from the start") from None
    _same(identity, json.loads(header["identity"]), path)
    weights = {name.removeprefix("network."): v for name, v in tensors.items() if name.startswith("network.")}
    network.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        kind, index, field = name.split(".", 2)
        if kind == "optimizer":
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(header["step"]), [(int(s), float(v)) for s, v in json.loads(header["curve"])]
