"""A trained model that can be priced, adapted and put back: what the policy knows as `wattbit.plan.Learner`."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_bytes
from wattbit.models.config import ModelConfig, TrainConfig
from wattbit.models.distributed import Group, choose_device
from wattbit.models.expert import BrevitasExpert
from wattbit.models.network import Experts, Transformer
from wattbit.models.quant import LayerQuantizer, brevitas_experts
from wattbit.models.sample import Samples, draw
from wattbit.models.scales import MIN_TOKENS, ExpertScales, calibrate
from wattbit.models.statistics import expert_stats
from wattbit.models.train import Teacher, make_optimizer, perplexity, train_step
from wattbit.plan import Allocation, ExpertId, ExpertStats, Precision
from wattbit.progress import Progress, silent

FINETUNE_RATE = 4e-4  # falls linearly to zero within each call of `finetune`; 1e-3 undoes part of the training
TAUGHT_RATE = 1e-3  # with a teacher, which holds the model where it was (results/quantizers.md)
STATS_ACT_BITS = 8  # damage is measured at this activation width


class MoELearner:
    """Implements `wattbit.plan.Learner` on a model that `wattbit.models.train` wrote.

    Scales come from `wattbit.models.scales.calibrate` on the float model's activations, the first time that an expert
    is used at a precision. Those that fine-tuning ran with stay with the weights, unless the weights outgrew what
    float32 computes exactly: these experts are calibrated anew.

    Evaluation and export run Brevitas modules; fine-tuning, and evaluation on a GPU, run `wattbit.models.quant`, which
    equals them. Scales are computed on the CPU, and single experts are handed out there.

    teacher: a model that fine-tuning follows, None for none. processes: those that fine-tune together, this one alone
    but for `wattbit.models.team`.
    """

    def __init__(
        self,
        network: Transformer,
        samples: Samples,
        train: TrainConfig,
        initial_router_norms: list[list[float]],
        teacher: Teacher | None = None,
    ) -> None:
        self.network = network
        self.teacher = teacher
        self.config: ModelConfig = network.config
        self.samples = samples
        self.train_config = train
        self.initial_router_norms = initial_router_norms
        self.processes = Group(0, 1, network.device)
        self._trained: dict[tuple[ExpertId, Precision], ExpertScales] = {}
        self._calibrated: dict[tuple[ExpertId, Precision], ExpertScales] = {}
        self._inputs: list[tuple[Tensor, list[int]]] | None = None

    @classmethod
    def open(cls, data: Path, model_dir: Path, device: str = "cpu", distillation: float = 0.0) -> Self:
        """The float model in `model_dir` with the tokens in `data`; WattbitError if they do not belong together.

        device: cpu, cuda or auto, as `choose_device` takes it. The calibration text is run there, so scales chosen on
        one device may differ in a last bit from those chosen on another. distillation: weight of the float model as the
        teacher of fine-tuning.
        """
        record = read_json(model_dir / "train.json")
        if record["data"] != read_json(data / "data.json")["digest"]:
            raise WattbitError(f"{model_dir} was trained on other data than {data}; run `wattbit train` again")
        config = ModelConfig.from_json(record["model"])
        train = TrainConfig.from_json(record["train"])
        torch.set_num_threads(train.threads)
        samples = Samples.load(data, config.context)
        network = Transformer(config).to(choose_device(device))
        learner = cls(network, samples, train, record["initial_router_norms"])
        learner.load(model_dir / "float.safetensors")
        if distillation:
            learner.teacher = Teacher(deepcopy(network).requires_grad_(False), distillation)
        return learner

    def scales(self, expert: ExpertId, precision: Precision) -> ExpertScales:
        """The scales of an expert at a precision and the current weights."""
        key = (expert, precision)
        if key in self._trained:
            return self._trained[key]
        if key not in self._calibrated:
            w1, w2 = (w.numpy() for w in self._weights(expert))
            self._calibrated[key] = calibrate(w1, w2, self.calibration_inputs(expert).numpy(), precision)
        return self._calibrated[key]

    def expert(self, expert: ExpertId, precision: Precision) -> BrevitasExpert:
        """A Brevitas module with a copy of the expert's current weights."""
        return BrevitasExpert(expert, *self._weights(expert), self.scales(expert, precision))

    def calibration_inputs(self, expert: ExpertId) -> Tensor:
        """What reaches the expert from the calibration text [n, D]; what reaches its layer if that is too little."""
        if self._inputs is None:
            self._inputs = self._trace_inputs()
        rows, counts = self._inputs[expert.layer]
        own = rows.split(counts)[expert.expert]
        return own if len(own) >= MIN_TOKENS else rows

    def perplexity(self, allocation: Allocation | None) -> float:
        """Validation perplexity with every expert at its precision; None is the float model."""
        return perplexity(self.network, self.samples.valid, None if allocation is None else self._experts(allocation))

    @torch.no_grad()
    def quantized_experts(self, allocation: Allocation) -> list[Experts]:
        """The experts at the widths of an allocation in the deployed arithmetic, one function a layer."""
        mixtures = [block.mixture for block in self.network.layers]
        return [q.experts(m.w1, m.w2) for q, m in zip(self.quantizers(allocation), mixtures, strict=True)]

    def quantizers(self, allocation: Allocation) -> list[LayerQuantizer]:
        """One a layer, with the scales of its experts at the widths of an allocation and the current weights."""
        used = {(p.expert, p.precision): self.scales(p.expert, p.precision) for p in allocation.placements}
        return self._quantizers(allocation, used)

    def finetune(self, allocation: Allocation, steps: int, seed: int, progress: Progress = silent) -> None:
        """Quantization-aware training of all weights at constant scales, straight through the rounding (STE)."""
        self.finetune_over([allocation], steps, seed, progress)

    def finetune_over(
        self, allocations: Sequence[Allocation], steps: int, seed: int, progress: Progress = silent
    ) -> None:
        """`finetune`, step after step at the next of the allocations, so that the weights serve all of them."""
        used = {(p.expert, p.precision): self.scales(p.expert, p.precision) for a in allocations for p in a.placements}
        quantizers = [self._quantizers(allocation, used) for allocation in allocations]
        rate = FINETUNE_RATE if self.teacher is None else TAUGHT_RATE
        network = self.processes.wrap(self.network)
        optimizer = make_optimizer(self.network, rate, weight_decay=0.0)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
            contexts = draw(self.samples.train, self.config.context, self.train_config.batch, seed, step)
            contexts = self.processes.share(contexts)
            mixtures = [block.mixture for block in self.network.layers]
            layers = zip(quantizers[step % len(quantizers)], mixtures, strict=True)
            experts = [quantizer.experts(mixture.w1, mixture.w2) for quantizer, mixture in layers]
            train_step(network, optimizer, contexts, self.train_config.balance, experts, self.teacher)
            progress("finetune", step + 1, steps)
        exact = {key: s for key, s in used.items() if s.still_exact(*(w.numpy() for w in self._weights(key[0])))}
        self.adopt(exact)

    def stats(self, weight_bits: tuple[int, ...], progress: Progress = silent) -> tuple[ExpertStats, ...]:
        """Statistics on validation text that `perplexity` does not see."""
        for bits in weight_bits:
            Precision(bits, STATS_ACT_BITS)  # refuses unknown widths before the work
        return expert_stats(
            self.network,
            self.samples.held.to(self.network.device),
            self.initial_router_norms,
            weight_bits,
            lambda expert, bits: self.expert(expert, Precision(bits, STATS_ACT_BITS)).to(self.network.device),
            progress,
        )

    def save(self, path: Path) -> None:
        """Write weights and the scales that they were fine-tuned with as safetensors."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        for (expert, precision), scales in self._trained.items():
            tensors[f"scales.{expert}.{precision}"] = torch.from_numpy(scales.to_array())
        write_bytes(path, safetensors_bytes(tensors, metadata={"model": self.config.digest}))

    def load(self, path: Path) -> None:
        """Take the weights and scales of a file that `save` or training wrote."""
        try:
            with safe_open(path, framework="pt") as file:
                model = (file.metadata() or {}).get("model")
            tensors = load_file(path)
        except FileNotFoundError:
            raise WattbitError(f"{path} does not exist; run the stage that writes it") from None
        except (SafetensorError, OSError) as error:
            raise WattbitError(f"{path} cannot be read ({error}); delete it and run its stage again") from None
        if model != self.config.digest:
            raise WattbitError(f"{path} holds model {model}, not {self.config.digest}; it belongs to another run")
        network, trained = {}, {}
        for name, value in tensors.items():
            kind, rest = name.split(".", 1)
            if kind == "network":
                network[rest] = value
            else:
                expert, _, precision = rest.partition(".")
                key = ExpertId.parse(expert), Precision.parse(precision)
                trained[key] = ExpertScales.from_array(key[1], value.numpy(), self.config.d_hidden)
        self.network.load_state_dict(network)
        self.adopt(trained)

    def adopt(self, trained: dict[tuple[ExpertId, Precision], ExpertScales]) -> None:
        """The network's weights have changed: keep these scales, forget all others."""
        self._trained = trained
        self._calibrated = {}
        self._inputs = None

    def _weights(self, expert: ExpertId) -> tuple[Tensor, Tensor]:
        """On the CPU."""
        mixture = self.network.layers[expert.layer].mixture
        return mixture.w1[expert.expert].detach().cpu(), mixture.w2[expert.expert].detach().cpu()

    def _quantizers(
        self, allocation: Allocation, scales: Mapping[tuple[ExpertId, Precision], ExpertScales]
    ) -> list[LayerQuantizer]:
        """One a layer, of that layer's experts at the widths of an allocation."""
        layers = [[e for e in self.config.expert_ids if e.layer == i] for i in range(self.config.layers)]
        device = self.network.device
        return [LayerQuantizer.of([scales[e, allocation.precision(e)] for e in layer], device) for layer in layers]

    @torch.no_grad()
    def _experts(self, allocation: Allocation) -> list[Experts]:
        """Every layer's experts at the widths of an allocation: Brevitas modules, or what equals them on a GPU."""
        if self.network.device.type != "cpu":
            return self.quantized_experts(allocation)
        modules: list[dict[int, BrevitasExpert]] = [{} for _ in range(self.config.layers)]
        for identity in self.config.expert_ids:
            modules[identity.layer][identity.expert] = self.expert(identity, allocation.precision(identity))
        return [brevitas_experts(layer) for layer in modules]

    @torch.no_grad()
    def _trace_inputs(self) -> list[tuple[Tensor, list[int]]]:
        """Each layer's expert inputs [N, D], sorted by expert, on the calibration text, and each expert's rows [E]."""
        x = self.network.embedding(self.samples.calibration[:, :-1].to(self.network.device))
        traced = []
        for block in self.network.layers:
            x, inputs = block.attend(x)
            y, routing = block.mixture(inputs)
            traced.append((inputs.index_select(0, routing.tokens).cpu(), routing.counts))
            x = x + y.view_as(x)
        return traced
