"""Run folders: done stages are not redone, changed ones are, interrupted ones leave no record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from wattbit.errors import WattbitError
from wattbit.progress import Progress, silent
from wattbit.run import Pipeline, Run, RunConfig, Stage


def config(**settings: Any) -> RunConfig:
    return RunConfig("tiny", None, "virtual-z2", 0, settings)


def stage(name: str, needs: tuple[str, ...], work: Callable[[Run, Progress], dict[str, Any]]) -> Stage:
    return Stage(name, name, needs, (), (name,), (name,), work)


def nothing(run: Run, progress: Progress) -> dict[str, Any]:
    return {}


def test_a_finished_stage_is_not_pending(tmp_path: Path) -> None:
    run = Run.create(tmp_path, config(a=1, b=2))
    pipeline = Pipeline([stage("a", (), nothing), stage("b", ("a",), nothing)])
    assert [s.name for s in pipeline.pending("b", run)] == ["a", "b"]
    pipeline.execute(pipeline.stages["a"], run, silent)
    assert [s.name for s in pipeline.pending("b", run)] == ["b"]
    pipeline.execute(pipeline.stages["b"], run, silent)
    assert pipeline.pending("b", run) == []


def test_an_interrupted_stage_stays_pending_and_keeps_its_files(tmp_path: Path) -> None:
    run = Run.create(tmp_path, config(a=1))

    def interrupted(run: Run, progress: Progress) -> dict[str, Any]:
        run.path("a").mkdir(exist_ok=True)
        part = run.path("a", "part")
        if not part.exists():
            part.write_text("half")
            raise KeyboardInterrupt
        return {"resumed": part.read_text()}

    pipeline = Pipeline([stage("a", (), interrupted)])
    with pytest.raises(KeyboardInterrupt):
        pipeline.execute(pipeline.stages["a"], run, silent)
    assert not pipeline.done("a", run)
    assert pipeline.execute(pipeline.stages["a"], run, silent)["result"] == {"resumed": "half"}


def test_what_a_stage_needs_changes_its_key(tmp_path: Path) -> None:
    first = Run.create(tmp_path, config(a=1, b=2))
    second = Run.create(tmp_path, config(a=9, b=2))
    pipeline = Pipeline([stage("a", (), nothing), stage("b", ("a",), nothing)])
    assert pipeline.key("b", first) != pipeline.key("b", second)
    assert first.folder != second.folder


def test_another_keys_leftovers_are_removed(tmp_path: Path) -> None:
    run = Run.create(tmp_path, config(a=1))
    run.path("a").mkdir()
    run.path("a", "stale").touch()
    pipeline = Pipeline([stage("a", (), nothing)])
    pipeline.execute(pipeline.stages["a"], run, silent)
    assert not run.path("a", "stale").exists()


def test_a_run_in_use_is_refused(tmp_path: Path) -> None:
    run = Run.create(tmp_path, config(a=1))
    with run.lock(), pytest.raises(WattbitError, match="in use by another command"), run.lock():
        pass


def test_latest_of_none(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match="make one with `wattbit train`"):
        Run.latest(tmp_path)
