"""What a study does without retraining: recipes decided here and in other processes, and what they do to the models."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

import torch
from study_jobs import BOARD, QUANTIZER, WIDTHS, Packing, Record, Settings, Table, layer_packed, search, workload
from study_tasks import TaskStudy

from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, write_json
from wattbit.hls.meter import ModelledMeter
from wattbit.models.config import ModelConfig
from wattbit.models.evaluation import Losses, perplexity
from wattbit.models.own import OwnModel
from wattbit.models.packed import PackedExpert, load_experts
from wattbit.models.quantizers.apply import fallen_back
from wattbit.models.subject import ModelSubject
from wattbit.plan import Allocation, ExpertId, ExpertStats
from wattbit.policy.methods.registry import method
from wattbit.recipe import Budget, Quantizer, Recipe

GPTQ_TOO = ("exact", "random", "mcmoe", "mxmoe")  # and DMPQ; beside the same with QUANTIZER


class Recipes:
    """A study's records, models by seed, and processes; what is declared here without a value, `study.Study` makes.

    pool: for what is waited for; slow_pool: for what takes minutes.
    """

    config: ModelConfig
    device: torch.device
    subjects: dict[int, ModelSubject]
    models: dict[int, OwnModel]
    stats: dict[int, tuple[ExpertStats, ...]]
    test: torch.Tensor
    words: int
    split: str

    def __init__(self, settings: Settings, pool: ProcessPoolExecutor, slow_pool: ProcessPoolExecutor) -> None:
        self.start = time.monotonic()
        self.settings, self.pool, self.slow_pool = settings, pool, slow_pool
        self.doing = "training"  # named where it fails
        self.records: dict[int, Record] = {}
        for seed in settings.seeds:
            path = settings.file(seed)
            self.records[seed] = read_json(path) if path.exists() else {}
            self.records[seed] |= {"preset": settings.preset, "seed": seed}
            for part in ("recipes", "tuned", "glue", "seconds"):
                self.records[seed].setdefault(part, {})
        self.searches: dict[tuple[int, float], Future[tuple[Record, float]]] = {}
        self.packings: dict[tuple[int, str], Packing] = {}
        self.tasks: list[TaskStudy] = []

    def late(self, share: float = 1.0) -> bool:
        return time.monotonic() - self.start > share * self.settings.seconds

    def say(self, what: str) -> None:
        now = time.monotonic() - self.start
        for seed, record in self.records.items():
            record["seconds"][what] = round(now, 1)
            write_json(self.settings.file(seed), record)
        print(f"{now:6.1f} s {self.settings.preset} {what}", flush=True)

    def judge(self, losses: Losses) -> Record:
        context = self.config.context
        found = perplexity(losses, self.test, self.words, context, context // 2)
        return {"perplexity": found.to_json() | {"split": self.split}}

    def search(
        self, stats: tuple[ExpertStats, ...], budget: float, seed: int, quantizer: Quantizer = QUANTIZER
    ) -> "Future[tuple[Record, float]]":
        table = Table(self.config.expert_ids, self.config.top_k, stats)
        return self.pool.submit(search, table, self.config.shape, budget, seed, self.settings.iterations, quantizer)

    def searched(self, budget: float, seed: int) -> Allocation:
        """DMPQ's recipe, judged without retraining too."""
        key = f"dmpq@{budget}"
        if key not in self.records[seed]["recipes"]:
            found, seconds = self.searches[seed, budget].result()
            self.round(seed, key, Recipe.from_json(found), seconds)
        return Recipe.from_json(self.records[seed]["recipes"][key]["recipe"]).allocation

    def pack(self, name: str, budget: float, seed: int) -> None:
        """Start to quantize a slow method's recipe."""
        key, s = f"{name}@{budget}", self.settings
        if key in self.records[seed]["recipes"]:
            return
        start = time.monotonic()
        recipe = method(name).decide(self.subjects[seed], Budget(budget, WIDTHS), seed)
        folder = s.out / f"{s.preset}-{seed}.packed"
        digest = digest_json(recipe.to_json() | {"method": ""})
        layers = []
        for layer in range(self.config.layers):
            path = folder / f"{digest}-{layer}.safetensors"
            found = self.slow_pool.submit(layer_packed, s.data, s.model(seed), recipe.to_json(), layer, path)
            layers.append((path, found))
        self.packings[seed, key] = Packing(recipe, time.monotonic() - start, tuple(layers))

    def slow(self) -> None:
        """Judge what the other processes have quantized."""
        for (seed, key), packing in self.packings.items():
            waiting = [found for _, found in packing.layers]
            while not all(found.done() for found in waiting) and not self.late():
                time.sleep(0.1)
            if self.late():
                break
            seconds = sum(found.result() for found in waiting)
            if not self.judged_before(seed, key, packing.recipe, packing.decide_s):
                packed: dict[ExpertId, PackedExpert] = {}
                for path, _ in packing.layers:
                    packed |= load_experts(path, str(self.device))
                self.quantized(seed, key, packing.recipe, packed, packing.decide_s, seconds)
        self.say("slow methods")

    def untuned(self, names: Sequence[str], share: float = 1.0) -> None:
        """Every method's recipe and what it does to the models, without retraining."""
        meter = ModelledMeter(self.config.shape, load(BOARD).target)
        for budget in self.settings.budgets:
            for name in names:
                for seed in self.settings.seeds:
                    if f"{name}@{budget}" not in self.records[seed]["recipes"] and not self.late(share):
                        self.decide(name, budget, seed, meter)
        self.say(f"without retraining, until {share}")

    def decide(
        self, name: str, budget: float, seed: int, meter: ModelledMeter, quantizer: Quantizer = QUANTIZER
    ) -> None:
        key, start = f"{name}{'' if quantizer == QUANTIZER else '-' + quantizer}@{budget}", time.monotonic()
        self.doing = f"{key} of seed {seed}"
        try:
            one = method(name, meter, workload(self.stats[seed], self.config.top_k), quantizer)
            recipe = one.decide(self.subjects[seed], Budget(budget, WIDTHS), seed)
        except WattbitError as error:
            self.records[seed]["recipes"][key] = {"refused": str(error)}
            return
        decided = time.monotonic()
        self.round(seed, key, recipe, decided - start)

    def round(self, seed: int, key: str, recipe: Recipe, decide_s: float) -> None:
        """Quantize here, unless the same recipe was judged already."""
        if self.judged_before(seed, key, recipe, decide_s):
            return
        start = time.monotonic()
        packed = self.subjects[seed].quantize(recipe)
        self.quantized(seed, key, recipe, packed, decide_s, time.monotonic() - start)
        if self.tasks and recipe.pruning is None:
            place = self.settings.seeds.index(seed)
            self.records[seed]["recipes"][key]["glue"] = self.tasks[0].rounded(place, recipe)

    def with_gptq(self) -> None:
        """Methods that decide widths, with GPTQ in place of QUANTIZER: in their tables too."""
        seeds, above = self.settings.seeds, [b for b in self.settings.budgets if b > min(WIDTHS)]
        meter = ModelledMeter(self.config.shape, load(BOARD).target)
        searches: dict[tuple[int, float], Future[tuple[Record, float]]] = {}
        for seed in seeds:
            if not self.late() and any(f"dmpq-gptq@{b}" not in self.records[seed]["recipes"] for b in above):
                stats = self.subjects[seed].stats(WIDTHS, "gptq")
                searches |= {(seed, b): self.search(stats, b, seed, "gptq") for b in above}
        for budget in above:
            for name in (*GPTQ_TOO, "dmpq"):
                for seed in seeds:
                    key = f"{name}-gptq@{budget}"
                    if self.late() or key in self.records[seed]["recipes"]:
                        continue
                    if name != "dmpq":
                        self.decide(name, budget, seed, meter, "gptq")
                    elif (seed, budget) in searches:
                        found, seconds = searches[seed, budget].result()
                        self.round(seed, key, Recipe.from_json(found), seconds)
        self.say("with GPTQ")

    def judged_before(self, seed: int, key: str, recipe: Recipe, decide_s: float) -> bool:
        """Whether another method has decided the same, which then is the result."""
        same = str(recipe.to_json() | {"method": ""})
        for other in self.records[seed]["recipes"].values():
            if other.get("recipe") and str(other["recipe"] | {"method": ""}) == same:
                self.records[seed]["recipes"][key] = other | {"recipe": recipe.to_json(), "decide_s": decide_s}
                return True
        return False

    def quantized(
        self,
        seed: int,
        key: str,
        recipe: Recipe,
        packed: Mapping[ExpertId, PackedExpert],
        decide_s: float,
        quantize_s: float,
    ) -> None:
        """Judge a model with these experts."""
        model = self.models[seed]
        floats = {expert: model.matrices(expert) for expert in packed}
        for expert, found in packed.items():
            model.replace(expert, found.dequantize())
        try:
            judged = self.judge(lambda contexts: model.losses(contexts, recipe.pruning))
        finally:
            for expert, matrices in floats.items():
                model.replace(expert, matrices)
        self.records[seed]["recipes"][key] = judged | {
            "recipe": recipe.to_json(),
            "bytes": sum(expert.bytes for expert in packed.values()),
            "rounded_to_nearest": len(fallen_back(recipe, packed)),
            "decide_s": decide_s,
            "quantize_s": quantize_s,
        }
        write_json(self.settings.file(seed), self.records[seed])
