"""Fine-tuning by torchrun's processes: as in one process, and the whole of `wattbit cotrain` with two."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.models_support import TINY_MODEL
from wattbit.cli import main
from wattbit.files import read_json
from wattbit.models.learner import MoELearner
from wattbit.models.team import TeamLearner
from wattbit.perform import perform
from wattbit.plan import Allocation
from wattbit.presets import run_config
from wattbit.run import Run

pytest_plugins = ["tests.models_support"]


def torchrun(folder: Path) -> list[str]:
    """The beginning of a command that two processes are to run; torchrun keeps its logs in the folder."""
    begin = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*begin, "--log-dir", str(folder / "torchrun")]


TUNE = """
import sys
from dataclasses import replace
from pathlib import Path
from wattbit.models.team import TeamLearner
from wattbit.plan import Allocation

data, model, out = map(Path, sys.argv[1:])
learner = TeamLearner.open(data, model, distillation=0.5)
learner.train_config = replace(learner.train_config, balance=0.0)
widths = [Allocation.of(dict.fromkeys(learner.config.expert_ids, bits)) for bits in (2, 3)]
with learner.together() as first:
    if first:
        learner.finetune(widths[0], 3, 0)
        learner.finetune_over(widths, 4, 1)
        learner.save(out)
"""


def test_two_processes_fine_tune_as_one_does(data: Path, model_dir: Path, tmp_path: Path):
    """To the order of float sums: without the load-balancing loss, which each process takes of its own tokens."""
    script = tmp_path / "tune.py"
    script.write_text(TUNE)
    command = [*torchrun(tmp_path), script, data, model_dir, tmp_path / "two.safetensors"]
    subprocess.run(command, check=True, capture_output=True)
    alone = MoELearner.open(data, model_dir, distillation=0.5)
    widths = [Allocation.of(dict.fromkeys(TINY_MODEL.expert_ids, bits)) for bits in (2, 3)]
    alone.train_config = replace(alone.train_config, balance=0.0)
    before = alone.perplexity(widths[0])
    alone.finetune(widths[0], 3, 0)
    alone.finetune_over(widths, 4, 1)
    together = MoELearner.open(data, model_dir)
    together.load(tmp_path / "two.safetensors")
    for allocation in widths:
        assert together.perplexity(allocation) == pytest.approx(alone.perplexity(allocation), rel=1e-5)
    assert together.perplexity(widths[0]) < before


def test_without_torchrun_a_team_is_its_one_learner(data: Path, model_dir: Path):
    learner = TeamLearner.open(data, model_dir)
    with learner.together() as first:
        assert first and learner.processes.size == 1
        learner.finetune(Allocation.of(dict.fromkeys(TINY_MODEL.expert_ids, 4)), 1, 0)


@pytest.mark.slow
def test_co_training_by_two_processes_is_that_of_one(tmp_path: Path):
    run = Run.create(tmp_path, run_config("tiny", None, "virtual-z2", 0))
    wattbit = Path(sys.executable).parent / "wattbit"
    command = [*torchrun(tmp_path), "--no-python", "--", wattbit, "cotrain", "--run", run.folder]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode and "must be done before torchrun's processes; run `wattbit search`" in refused.stderr
    perform(run, "search", as_json=False)
    subprocess.run([*command, "--rounds", "1", "--json"], check=True, capture_output=True)
    (kept,) = run.path("cotrainings").iterdir()
    kept = kept.rename(tmp_path / "two")
    alone = CliRunner().invoke(main, ["cotrain", "--run", str(run.folder), "--rounds", "1", "--json"])
    assert alone.exit_code == 0, alone.output
    methods = json.loads(alone.stdout)["result"]["methods"]
    for name, method in read_json(kept / "cotrain.json")["methods"].items():
        assert method["allocation"] == methods[name]["allocation"]
        after = methods[name]["perplexity_after"]["mean"]
        assert method["perplexity_after"]["mean"] == pytest.approx(after, rel=0.02)
    perform(run, "cotrain", as_json=False)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "cotrain: done already" in done.stdout + done.stderr
