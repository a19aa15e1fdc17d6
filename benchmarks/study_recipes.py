"""What a study does without retraining: recipes decided here and in other processes, and what they do to the models."""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from study_jobs import BOARD, QUANTIZER, WIDTHS, Packing, Record, Table, layer_packed, search, workload
from study_models import Models
from study_records import Records, statistics
from study_tasks import TaskStudy

from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.files import digest_json
from wattbit.hls.meter import ModelledMeter
from wattbit.models.packed import PackedExpert, load_experts
from wattbit.models.quantizers.apply import fallen_back
from wattbit.plan import Allocation, ExpertId, ExpertStats
from wattbit.policy.methods.registry import method
from wattbit.recipe import Budget, Quantizer, Recipe

GPTQ_TOO = ("exact", "random", "mcmoe", "mxmoe")  # and DMPQ; beside the same with QUANTIZER

Search = Future[tuple[Record, float]]
"""DMPQ's recipe and the seconds that it took."""


class Recipes:
    """Decides recipes for the models of a study and judges them, into its records.

    pool: processes for what is waited for; slow_pool: for what takes minutes. task: judges what is
    decided too, once it is there.
    """

    def __init__(
        self,
        records: Records,
        models: Models,
        pool: ProcessPoolExecutor,
        slow_pool: ProcessPoolExecutor,
    ) -> None:
        self.task: TaskStudy | None = None
        self._settings, self._records, self._models = records.settings, records, models
        self._stats = {seed: statistics(records[seed]) for seed in records.settings.seeds}
        self._pool, self._slow_pool = pool, slow_pool
        self._meter = ModelledMeter(models.config.shape, load(BOARD).target)
        self._searches: dict[tuple[int, float], Search] = {}
        self._packings: dict[tuple[int, str], Packing] = {}

    def start(self, slow: Sequence[str]) -> None:
        """DMPQ's searches, and what these methods quantize, begin in the other processes."""
        for seed in self._settings.seeds:
            for budget in self._settings.above:
                if f"dmpq@{budget}" not in self._records[seed]["recipes"]:
                    self._searches[seed, budget] = self.search(self._stats[seed], budget, seed)
        for name in slow:
            for budget in self._settings.budgets:
                for seed in self._settings.seeds:
                    self._pack(name, budget, seed)

    def search(
        self, stats: tuple[ExpertStats, ...], budget: float, seed: int, quantizer: Quantizer = QUANTIZER
    ) -> Search:
        config = self._models.config
        table = Table(config.expert_ids, config.top_k, stats)
        return self._pool.submit(search, table, config.shape, budget, seed, self._settings.iterations, quantizer)

    def searched(self, budget: float, seed: int) -> Allocation:
        """DMPQ's recipe, judged without retraining too."""
        key, recipes = f"dmpq@{budget}", self._records[seed]["recipes"]
        if key not in recipes:
            found, seconds = self._searches[seed, budget].result()
            self._round(seed, key, Recipe.from_json(found), seconds)
        return Recipe.from_json(recipes[key]["recipe"]).allocation

    def all_searched(self) -> None:
        for seed, budget in self._searches:
            if not self._records.late():
                self.searched(budget, seed)

    def decided(self, names: Sequence[str], share: float = 1.0) -> None:
        """Every method's recipe and what it does to the models, until this share of the time is over."""
        for budget in self._settings.budgets:
            for name in names:
                for seed in self._settings.seeds:
                    known = f"{name}@{budget}" in self._records[seed]["recipes"]
                    if not known and not self._records.late(share):
                        self._decide(name, budget, seed)
        self._records.say(f"without retraining, until {share}")

    def slow(self) -> None:
        """Judge what the other processes have quantized."""
        for (seed, key), packing in self._packings.items():
            waiting = [found for _, found in packing.layers]
            while not all(found.done() for found in waiting) and not self._records.late():
                time.sleep(0.1)
            if self._records.late():
                break
            seconds = sum(found.result() for found in waiting)
            if not self._judged_before(seed, key, packing.recipe, packing.decide_s):
                packed: dict[ExpertId, PackedExpert] = {}
                for path, _ in packing.layers:
                    packed |= load_experts(path, str(self._models.device))
                self._quantized(seed, key, packing.recipe, packed, packing.decide_s, seconds)
        self._records.say("slow methods")

    def with_gptq(self) -> None:
        """Methods that decide widths, with GPTQ in place of QUANTIZER: in their tables too."""
        seeds, budgets = self._settings.seeds, self._settings.above
        searches: dict[tuple[int, float], Search] = {}
        for seed in seeds:
            known = self._records[seed]["recipes"]
            if not self._records.late() and any(f"dmpq-gptq@{budget}" not in known for budget in budgets):
                stats = self._models.subjects[seed].stats(WIDTHS, "gptq")
                searches |= {(seed, budget): self.search(stats, budget, seed, "gptq") for budget in budgets}
        for budget in budgets:
            for name in (*GPTQ_TOO, "dmpq"):
                for seed in seeds:
                    key = f"{name}-gptq@{budget}"
                    if self._records.late() or key in self._records[seed]["recipes"]:
                        continue
                    if name != "dmpq":
                        self._decide(name, budget, seed, "gptq")
                    elif (seed, budget) in searches:
                        found, seconds = searches[seed, budget].result()
                        self._round(seed, key, Recipe.from_json(found), seconds)
        self._records.say("with GPTQ")

    def _decide(self, name: str, budget: float, seed: int, quantizer: Quantizer = QUANTIZER) -> None:
        key, start = f"{name}{'' if quantizer == QUANTIZER else '-' + quantizer}@{budget}", time.monotonic()
        self._records.doing = f"{key} of seed {seed}"
        try:
            one = method(name, self._meter, workload(self._stats[seed], self._models.config.top_k), quantizer)
            recipe = one.decide(self._models.subjects[seed], Budget(budget, WIDTHS), seed)
        except WattbitError as error:
            self._records[seed]["recipes"][key] = {"refused": str(error)}
            return
        self._round(seed, key, recipe, time.monotonic() - start)

    def _round(self, seed: int, key: str, recipe: Recipe, decide_s: float) -> None:
        """Quantize here, unless the same recipe was judged already."""
        if self._judged_before(seed, key, recipe, decide_s):
            return
        start = time.monotonic()
        packed = self._models.subjects[seed].quantize(recipe)
        self._quantized(seed, key, recipe, packed, decide_s, time.monotonic() - start)
        if self.task is not None and recipe.pruning is None:
            place = self._settings.seeds.index(seed)
            self._records[seed]["recipes"][key]["glue"] = self.task.rounded(place, recipe)

    def _pack(self, name: str, budget: float, seed: int) -> None:
        """Start to quantize a slow method's recipe."""
        key, s = f"{name}@{budget}", self._settings
        if key in self._records[seed]["recipes"]:
            return
        start = time.monotonic()
        recipe = method(name).decide(self._models.subjects[seed], Budget(budget, WIDTHS), seed)
        folder = s.out / f"{s.preset}-{seed}.packed"
        digest = digest_json(recipe.to_json() | {"method": ""})
        layers = []
        for layer in range(self._models.config.layers):
            path = folder / f"{digest}-{layer}.safetensors"
            found = self._slow_pool.submit(layer_packed, s.data, s.model(seed), recipe.to_json(), layer, path)
            layers.append((path, found))
        self._packings[seed, key] = Packing(recipe, time.monotonic() - start, tuple(layers))

    def _judged_before(self, seed: int, key: str, recipe: Recipe, decide_s: float) -> bool:
        """Whether another method has decided the same, which then is the result."""
        recipes, same = self._records[seed]["recipes"], str(recipe.to_json() | {"method": ""})
        for other in recipes.values():
            if other.get("recipe") and str(other["recipe"] | {"method": ""}) == same:
                recipes[key] = other | {"recipe": recipe.to_json(), "decide_s": decide_s}
                return True
        return False

    def _quantized(
        self,
        seed: int,
        key: str,
        recipe: Recipe,
        packed: Mapping[ExpertId, PackedExpert],
        decide_s: float,
        quantize_s: float,
    ) -> None:
        """Judge a model with these experts."""
        model = self._models.own[seed]
        floats = {expert: model.matrices(expert) for expert in packed}
        for expert, found in packed.items():
            model.replace(expert, found.dequantize())
        try:
            judged = self._models.judge(lambda contexts: model.losses(contexts, recipe.pruning))
        finally:
            for expert, matrices in floats.items():
                model.replace(expert, matrices)
        self._records[seed]["recipes"][key] = judged | {
            "recipe": recipe.to_json(),
            "bytes": sum(expert.bytes for expert in packed.values()),
            "rounded_to_nearest": len(fallen_back(recipe, packed)),
            "decide_s": decide_s,
            "quantize_s": quantize_s,
        }
        self._records.save(seed)
