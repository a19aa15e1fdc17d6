"""Runtimes for other cores, emulated, give this machine's bits."""

from pathlib import Path

import pytest

from tests.models_support import TINY_MODEL
from tests.runtime_support import FAMILIES, Program, gated_model, mixed_engines
from tests.tvm_support import runnable
from wattbit.models.learner import MoELearner
from wattbit.models.portable import Portable, decoder
from wattbit.tvm_schedules.cores import CORES, host_core

pytest_plugins = ["tests.models_support"]

QUICK = {"cortex-a53", "cortex-a9"}
OTHERS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CORES]
SLOW = [pytest.param(f"{name}-mixed", marks=pytest.mark.slow) for name in FAMILIES]
PROMPT = [5, 17, 2, 250, 8, 8, 131, 64, 77, 12, 0, 299, 45, 81, 3, 9, 27, 14]


@pytest.fixture(scope="module", params=["integer", "olmoe-uniform4", *SLOW])
def model(request: pytest.FixtureRequest, data: Path, model_dir: Path) -> Portable:
    if request.param == "integer":
        return decoder(MoELearner.open(data, model_dir), mixed_engines(TINY_MODEL.expert_ids))
    return gated_model(*request.param.split("-")).portable


@pytest.fixture(scope="module")
def expected(model: Portable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What this machine's own core gives: greedily, and drawn."""
    program = Program.build(model, host_core(), [], tmp_path_factory.mktemp("host"))
    return {"greedy": program.run(PROMPT, 8), "drawn": program.run(PROMPT, 8, threads=3, sampling=(1.5, 20, 7))}


@pytest.mark.parametrize("name", OTHERS)
def test_every_bit_of_the_logits_is_the_same(
    name: str, model: Portable, expected: dict[str, str], tmp_path: Path
) -> None:
    core = CORES[name]
    program = Program.build(model, core, runnable(core), tmp_path)
    assert program.run(PROMPT, 8) == expected["greedy"]
    assert program.run(PROMPT, 8, threads=2, sampling=(1.5, 20, 7)) == expected["drawn"]


def test_the_checksums_tell_logits_apart(expected: dict[str, str]) -> None:
    lines = expected["greedy"].splitlines()
    assert len(lines) == 8 and len({line.split()[1] for line in lines}) == 8
    assert expected["greedy"] != expected["drawn"]
