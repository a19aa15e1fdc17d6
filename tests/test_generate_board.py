"""Text on the virtual board, with experts on the simulated accelerator and on its cores, is PyTorch's."""

from pathlib import Path

import pytest

from tests.board_support import cache_or_skip
from tests.models_support import TINY_MODEL
from tests.runtime_support import mixed_engines
from wattbit.board.bundle import make_bundle
from wattbit.board.client import AgentClient
from wattbit.board.deploy import deploy
from wattbit.board.targets import load
from wattbit.board.virtual import VirtualBoard
from wattbit.files import write_json
from wattbit.hls.build import build as build_engines
from wattbit.hls.planner import plan
from wattbit.models.decode import greedy, reference
from wattbit.models.export import export
from wattbit.models.learner import MoELearner
from wattbit.plan import Workload
from wattbit.tvm_schedules.compile import build as build_kernels

pytest_plugins = ["tests.models_support"]

pytestmark = pytest.mark.slow
ALLOCATION = mixed_engines(TINY_MODEL.expert_ids)


@pytest.fixture(scope="module")
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


@pytest.fixture(scope="module")
def bundle(learner: MoELearner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stages up to `deploy` make of an allocation to both engines."""
    cache_or_skip()
    run, target = tmp_path_factory.mktemp("run"), load("virtual-z2").target
    write_json(run / "cotrain/allocation.json", ALLOCATION.to_json())
    export(learner, ALLOCATION, run / "export")
    build_kernels(run / "export", ALLOCATION, target.core, run / "build/arm")
    share = tuple((expert, 1 / TINY_MODEL.experts) for expert in TINY_MODEL.expert_ids)
    planned = plan(ALLOCATION, TINY_MODEL.shape, target, Workload(100, TINY_MODEL.top_k, share))
    build_engines(run / "export", planned, run / "build/hls")
    make_bundle(run, target, run / "bundle")
    return run / "bundle"


def test_the_boards_text_is_pytorchs(learner: MoELearner, bundle: Path) -> None:
    logits = reference(learner, ALLOCATION)
    with (
        VirtualBoard(cache_or_skip()) as board,
        board.connection() as connection,
        AgentClient(connection, deploy(bundle, connection)) as agent,
    ):
        agent.request("load")
        for row in learner.samples.valid[:3]:
            prompt = row[:6].tolist()
            found = agent.request("generate", count=20, prompt=prompt)["tokens"]
            found += agent.request("generate", count=7)["tokens"]
            assert found == greedy(logits, prompt, 27)
        agent.request("quit")
