"""The seeds' models of a study trained, and fine-tuned at many allocations, side by side (`wattbit.models.stack`)."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from wattbit.files import read_json
from wattbit.models.distributed import choose_device
from wattbit.models.learner import TAUGHT_RATE, MoELearner
from wattbit.models.network import Transformer
from wattbit.models.sample import Samples, draw
from wattbit.models.stack import Stack, falling, fit, stacked
from wattbit.models.train import CURVE_STEPS, perplexity, router_norms, schedule, write_model
from wattbit.plan import Allocation
from wattbit.policy.cotrain import CotrainSettings
from wattbit.presets import Preset


@contextmanager
def fast() -> Iterator[None]:
    """Products in TF32 while models are trained; what judges them is float32."""
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def train(models: Sequence[tuple[int, Path]], data: Path, preset: Preset, device: str) -> None:
    """Write a float model for each seed, with the start, batches and learning rates that `wattbit train` gives it."""
    settings = [replace(preset.train, seed=seed, device=device) for seed, _ in models]
    samples, context, first = Samples.load(data, preset.model.context), preset.model.context, settings[0]
    networks = []
    for one in settings:
        torch.manual_seed(one.seed)
        networks.append(Transformer(preset.model))
    norms = [router_norms(network) for network in networks]
    stack = Stack.of(networks).to(choose_device(device))
    with fast():
        curve = fit(
            stack,
            lambda step: torch.stack([draw(samples.train, context, one.batch, one.seed, step) for one in settings]),
            [first.learning_rate * schedule(step, first) for step in range(first.steps)],
            first.balance,
            weight_decay=first.weight_decay,
            bf16=first.bf16,
        )
    kept = [step for step in range(first.steps) if step % CURVE_STEPS == 0 or step == first.steps - 1]
    digest = read_json(data / "data.json")["digest"]
    for i, (one, network, (_, out)) in enumerate(zip(settings, networks, models, strict=True)):
        stack.write(i, network.to(stack.device))
        about = {
            **{"data": digest, "model": preset.model.to_json(), "train": one.to_json()},
            "loss": [(step, curve[step][i]) for step in kept],
            "valid_perplexity": perplexity(network, samples.valid),
            "initial_router_norms": norms[i],
        }
        write_model(out, network, about)


def finetune(
    stack: Stack,
    floats: Stack,
    learners: Sequence[MoELearner],
    allocations: Sequence[Allocation],
    seeds: Sequence[int],
    steps: int,
) -> list[MoELearner]:
    """Steps of a stack as `MoELearner.finetune` makes them, with co-training's default teacher: learners of the weights
    that they leave. floats: the teachers, each of as many neighbours."""
    quantizers = stacked([one.quantizers(a) for one, a in zip(learners, allocations, strict=True)])
    settings, context = learners[0].train_config, stack.config.context
    tokens = learners[0].samples.train
    with fast():
        fit(
            stack,
            lambda step: torch.stack([draw(tokens, context, settings.batch, seed, step) for seed in seeds]),
            falling(TAUGHT_RATE, steps),
            settings.balance,
            quantizers=quantizers,
            teacher=floats,
            taught=CotrainSettings().distillation,
        )
    exact = []  # [L][M E]
    with torch.no_grad():
        for layer, quantizer in enumerate(quantizers):
            w1, w2 = (stack[f"blocks.{layer}.mixture.{name}"].flatten(0, 1) for name in ("w1", "w2"))
            exact.append(quantizer.exact(w1, w2).tolist())
    found = []
    for i, (learner, allocation) in enumerate(zip(learners, allocations, strict=True)):
        network = copy.deepcopy(learner.network)
        stack.write(i, network)
        own = MoELearner(network, learner.samples, settings, learner.initial_router_norms)
        kept = [e for e in stack.config.expert_ids if exact[e.layer][i * stack.config.experts + e.expert]]
        own.adopt({(e, allocation.precision(e)): learner.scales(e, allocation.precision(e)) for e in kept})
        found.append(own)
    return found
