"""Sizes of a run by name, and the configuration that they make."""

from typing import Any

from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.models.config import DEMO_MODEL, DEMO_TRAIN, ModelConfig, TrainConfig
from wattbit.policy.cotrain import CotrainSettings
from wattbit.policy.search import SearchSettings
from wattbit.run import RunConfig

PRESETS: dict[str, tuple[ModelConfig, TrainConfig, CotrainSettings]] = {
    "demo": (DEMO_MODEL, DEMO_TRAIN, CotrainSettings(steps=30)),
    # for tests: every part small, the path whole
    "tiny": (
        ModelConfig(vocab_size=384, d_model=16, d_hidden=32, layers=2, heads=2, experts=4, top_k=2, context=32),
        TrainConfig(steps=30, batch=8, warmup_steps=5),
        CotrainSettings(search=SearchSettings(iterations=20), steps=3),
    ),
}


def run_config(preset: str, data: str | None, board: str, seed: int) -> RunConfig:
    """The configuration of a run; WattbitError for a preset or board that does not exist."""
    if preset not in PRESETS:
        raise WattbitError(f"preset must be one of {', '.join(sorted(PRESETS))}, not {preset!r}")
    model, train, cotrain = PRESETS[preset]
    settings: dict[str, Any] = {
        "model": model.to_json(),
        "train": train.to_json() | {"seed": seed},
        "cotrain": cotrain.to_json() | {"seed": seed},
        "target": load(board).target.to_json(),
    }
    return RunConfig(preset=preset, data=data, board=board, seed=seed, settings=settings)
