"""`wattbit generate` and the agent's command behind it: text from a bundle, and what is refused."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from tests.board_stub import CLOCK_MHZ, DIGEST, TARGET, build_stub, load_stub, stub_outputs
from tests.models_support import TINY_MODEL
from tests.runtime_support import mixed_engines
from wattbit.arith import Int8
from wattbit.board.agent.__main__ import answer
from wattbit.board.agent.session import Session
from wattbit.board.bundle import Parts, pack
from wattbit.cli import main
from wattbit.commands import generate
from wattbit.errors import WattbitError
from wattbit.files import write_json
from wattbit.models.data import load_vocabulary
from wattbit.models.decode import greedy, reference
from wattbit.models.export import export
from wattbit.models.learner import MoELearner
from wattbit.plan import ExpertId
from wattbit.run import Run, RunConfig
from wattbit.tvm_schedules.compile import build as build_kernels
from wattbit.tvm_schedules.cores import host_core
from wattbit.tvm_schedules.model.runtime import Decoder, Sampling

pytest_plugins = ["tests.models_support"]

ALLOCATION = mixed_engines(TINY_MODEL.expert_ids)
ENGINES = {  # of the stub: by width class, as a planner would have it
    p: [e for e in experts if any(a.expert == e and a.engine == "fpga" for a in ALLOCATION.placements)]
    for p, experts in ALLOCATION.classes.items()
}
PROMPT = [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57]


@pytest.fixture(scope="module")
def learner(data: Path, model_dir: Path) -> MoELearner:
    return MoELearner.open(data, model_dir)


@pytest.fixture(scope="module")
def run(learner: MoELearner, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run folder with what stages up to `build` leave, for this machine."""
    folder = tmp_path_factory.mktemp("run")
    export(learner, ALLOCATION, folder / "export")
    build_kernels(folder / "export", ALLOCATION, host_core().name, folder / "build/host")
    (folder / "data").symlink_to(data)
    return Run(folder, RunConfig("tiny", None, "virtual-z2", 0, {}))


@pytest.fixture(scope="module")
def bundle(run: Run) -> Path:
    """A bundle whose design is the stub, for this machine's core."""
    engines = [{"precision": str(p), "experts": [str(e) for e in experts]} for p, experts in ENGINES.items() if experts]
    parts = Parts(
        allocation=ALLOCATION,
        export=run.path("export"),
        design={"digest": DIGEST, "engines": engines[:2]},
        accelerator=build_stub(run.path("build/accel.so")),
        kernels=run.path("build/host"),
        top_k=TINY_MODEL.top_k,
        clock_mhz=CLOCK_MHZ,
    )
    kept = {ExpertId.parse(e) for record in engines[:2] for e in record["experts"]}
    placements = tuple(replace(p, engine="fpga" if p.expert in kept else "arm") for p in ALLOCATION.placements)
    parts = replace(parts, allocation=replace(ALLOCATION, placements=placements))
    pack(parts, replace(TARGET, core=host_core().name), run.path("bundle"))
    return run.path("bundle")


@pytest.fixture
def session(bundle: Path) -> Session:
    opened = Session(bundle, load_stub)
    opened.load()
    return opened


def test_the_agent_sends_experts_to_their_engines(run: Run, session: Session) -> None:
    """Its tokens are those of the decoder with the stub's outputs for the experts that have an engine."""
    experts = session.manifest["experts"]
    places = {ExpertId.parse(n): (r["engine"], r["set"]) for n, r in experts.items() if r["engine"] is not None}
    assert 0 < len(places) < len(experts)

    def stub(names: Sequence[ExpertId], x: Int8) -> Int8:
        engine, index = np.array([places[name] for name in names]).T
        return stub_outputs(engine, index, x)

    first = session.generate(count=3, prompt=PROMPT)
    more = session.generate(count=4)
    with Decoder(run.path("build/host/decoder"), threads=1) as decoder:
        decoder.place(places, stub)
        assert first["tokens"] + more["tokens"] == list(decoder.generate(PROMPT, 7))
        session.generate(count=1, prompt=PROMPT, temperature=2.0, seed=5)
        drawn = session.generate(count=5)["tokens"]
        decoder.reset()
        assert drawn == list(decoder.generate(PROMPT, 6, Sampling(2.0, seed=5)))[1:]
    assert first["wall_s"] is None  # the board is a virtual one


def test_experts_with_an_engine_run_on_the_cores_where_asked(run: Run, session: Session) -> None:
    """The stub's outputs are not the model's: all on the cores is PyTorch's text, some is a third one."""
    own = [name for name, record in session.manifest["experts"].items() if record["engine"] is not None]
    launched: list[str] = []
    engines = session._on_fpga

    def spy(names: list[str], x: Int8) -> Int8:
        launched.extend(names)
        return engines(names, x)

    session._on_fpga = spy  # type: ignore[method-assign]
    on_engines = session.generate(count=6, prompt=PROMPT)["tokens"]
    assert set(launched) == set(own)
    launched.clear()
    session.generate(count=6, prompt=PROMPT, on_cores=own[:1])
    assert set(launched) == set(own[1:])
    launched.clear()
    with Decoder(run.path("build/host/decoder"), threads=1) as decoder:
        assert session.generate(count=6, prompt=PROMPT, on_cores=own)["tokens"] == list(decoder.generate(PROMPT, 6))
    assert not launched
    assert session.generate(count=6, prompt=PROMPT)["tokens"] == on_engines, (
        "the next prompt is placed as the bundle is"
    )


def test_the_agents_text_ends_with_the_context(session: Session) -> None:
    tokens = session.generate(count=100, prompt=PROMPT)["tokens"]
    assert len(tokens) == TINY_MODEL.context - len(PROMPT) + 1
    assert session.generate(count=5)["tokens"] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": []}, "a prompt needs at least one token"),
        ({"prompt": [5] * 33}, "33 tokens after 0 overflow the context of 32; shorten the prompt"),
        ({"prompt": [300]}, "token 300 is not in the vocabulary of 300; encode the prompt with the model's own"),
        ({"prompt": [-1]}, "token -1 is not in the vocabulary of 300; encode the prompt with the model's own"),
        ({"prompt": [1], "temperature": -1.0}, "temperature must be 0 to 1e6, not -1"),
        ({"prompt": [1], "top_k": -3}, "top_k must be 0 or more, not -3"),
        ({"prompt": [1], "on_cores": ["L9E9"]}, "the bundle has no expert L9E9; it belongs to another model"),
    ],
)
def test_a_bad_request_is_an_error_in_the_reply(session: Session, fields: dict[str, Any], message: str) -> None:
    assert answer(session, json.dumps({"cmd": "generate", "count": 2, **fields})) == {"error": message}


def test_a_bundle_without_a_decoder_is_refused(session: Session) -> None:
    session._manifest = session.manifest | {"decoder": None}
    with pytest.raises(WattbitError, match="the bundle has no decoder; run `wattbit export`, build and deploy again"):
        session.generate(count=1, prompt=[1])


@pytest.fixture
def command(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command on that run, whose stages are taken as done."""
    monkeypatch.setattr(generate, "perform", lambda run, last: None)
    monkeypatch.setattr(Run, "latest", lambda root: run)
    return ["generate", "--host", "localhost"]


def test_the_text_is_pytorchs(run: Run, learner: MoELearner, command: list[str]) -> None:
    vocabulary = load_vocabulary(run.path("data"))
    prompt = vocabulary.decode(learner.samples.valid[0, :8].tolist())
    ids = vocabulary.encode(prompt).ids
    expected = vocabulary.decode(greedy(reference(learner, ALLOCATION), ids, 12))
    result = CliRunner().invoke(main, [*command, "--tokens", "12", prompt])
    assert result.exit_code == 0, result.output
    assert result.stdout == expected + "\n"
    assert "12 tokens" in result.stderr


def test_seeds_repeat_and_differ(command: list[str]) -> None:
    def text(*options: str) -> str:
        return CliRunner().invoke(main, [*command, "--temperature", "1.5", *options, "def main("]).stdout

    assert text("--seed", "3") == text("--seed", "3")
    assert len({text("--seed", str(seed)) for seed in range(5)}) > 2
    assert text("--top-k", "1") == CliRunner().invoke(main, [*command, "def main("]).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([""], "the prompt has no tokens; give some text"),
        (["x " * 90], "tokens after 0 overflow the context of 32; shorten the prompt"),
        (["--board", "virtual-z2", "x"], "--board and --host both say where to decode; give one"),
        (["--temperature", "-2", "x"], "-2.0 is not in the range x>=0"),
        (["--on-cores", "all", "x"], "--on-cores is of a board with engines"),
    ],
)
def test_bad_input_is_one_line(command: list[str], words: list[str], message: str) -> None:
    result = CliRunner().invoke(main, [*command, *words])
    assert result.exit_code != 0
    assert message in result.output
    assert "Traceback" not in result.output


def test_experts_are_named_by_the_run(run: Run) -> None:
    write_json(run.path("cotrain", "allocation.json"), ALLOCATION.to_json())
    assert generate.experts_of(run, "L0E1,L1E0") == ["L0E1", "L1E0"]
    assert generate.experts_of(run, "all") == [str(p.expert) for p in ALLOCATION.placements]
    with pytest.raises(WattbitError, match="the run has no expert 'L7E0'; name some of L0E0 to L1E3"):
        generate.experts_of(run, "L0E1,L7E0")


def test_a_board_without_a_bundle_is_named(run: Run) -> None:
    with pytest.raises(WattbitError, match="no bundle for zcu104; make one with `wattbit board --board zcu104`"):
        generate.bundle_for(run, "zcu104")
    assert generate.bundle_for(run, None) == run.path("bundle")
