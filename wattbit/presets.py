"""Sizes of a run by name, and the configuration that they make."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wattbit.board.targets import load
from wattbit.errors import WattbitError
from wattbit.models.config import DEMO_MODEL, DEMO_TRAIN, ModelConfig, TrainConfig
from wattbit.plan import Target
from wattbit.policy.cotrain import CotrainSettings
from wattbit.policy.search import SearchSettings
from wattbit.run import RunConfig


@dataclass(frozen=True)
class Preset:
    """The sizes of a run. chip_share: how much of the board's LUTs, flip-flops and DSP slices a plan may take."""

    model: ModelConfig
    train: TrainConfig
    cotrain: CotrainSettings
    chip_share: float = 0.8  # a chip that is full is not placed (UG949), and plans' LUTs are some per cent off


WT2_MODEL = ModelConfig(vocab_size=8192, d_model=256, d_hidden=512, layers=4, heads=4, experts=16, context=256)
WT2_TRAIN = TrainConfig(
    steps=2000, batch=16, learning_rate=2e-3, warmup_steps=100, weight_decay=0.1, device="auto", bf16=True
)

# Fewer bits than 4 ask for longer fine-tuning, and it repairs most of the table's damage: in the end 0.1 nats of the
# table for the whole latency are a few hundredths of the loss.
DEMO_COTRAIN = CotrainSettings(search=SearchSettings(budget_bits=3.5, latency_nats=0.1), steps=75)

PRESETS = {
    "demo": Preset(DEMO_MODEL, DEMO_TRAIN, DEMO_COTRAIN),
    "e64": Preset(replace(DEMO_MODEL, experts=64), DEMO_TRAIN, CotrainSettings(steps=30)),
    # WikiText-2 with a vocabulary of 8192: minutes on a GPU, hours on a laptop
    "wt2-e16": Preset(WT2_MODEL, WT2_TRAIN, CotrainSettings(steps=150)),
    "wt2-e64": Preset(replace(WT2_MODEL, experts=64), WT2_TRAIN, CotrainSettings(steps=150)),
    # one expert a token, as in the Switch Transformer (arXiv 2101.03961); a laptop's size
    "switch-e16": Preset(replace(DEMO_MODEL, top_k=1), DEMO_TRAIN, CotrainSettings(steps=30)),
    # for tests: every part small, the path whole
    "tiny": Preset(
        ModelConfig(vocab_size=384, d_model=16, d_hidden=32, layers=2, heads=2, experts=4, top_k=2, context=32),
        TrainConfig(steps=30, batch=8, warmup_steps=5),
        CotrainSettings(search=SearchSettings(weight_bits=(2, 4, 8), iterations=20), steps=3),
        chip_share=1 / 8,
    ),
}


def run_config(preset: str, data: str | None, board: str, seed: int) -> RunConfig:
    """The configuration of a run; WattbitError for a preset or board that does not exist."""
    if preset not in PRESETS:
        raise WattbitError(f"preset must be one of {', '.join(sorted(PRESETS))}, not {preset!r}")
    sizes = PRESETS[preset]
    settings: dict[str, Any] = {
        "corpus": files(data),
        "model": sizes.model.to_json(),
        "train": sizes.train.to_json() | {"seed": seed},
        "cotrain": sizes.cotrain.to_json() | {"seed": seed},
        "target": share(load(board).target, sizes.chip_share).to_json(),
    }
    return RunConfig(preset=preset, data=data, board=board, seed=seed, settings=settings)


def files(data: str | None) -> list[list[str | int]]:
    """Name, size and time of change of a corpus folder's files, so that changed text makes another run."""
    if data is None or not Path(data).is_dir():
        return []
    found = ((path, path.stat()) for path in sorted(Path(data).iterdir()) if path.is_file())
    return [[path.name, stat.st_size, stat.st_mtime_ns] for path, stat in found]


def share(target: Target, part: float) -> Target:
    """The target with a part of its LUTs, flip-flops and DSP slices, and all of its block RAM."""
    lut, ff, dsp = (int(whole * part) for whole in (target.lut, target.ff, target.dsp))
    return replace(target, lut=lut, ff=ff, dsp=dsp)
