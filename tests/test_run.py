"""Run folders: done stages are not redone, changed ones are, interrupted ones leave no record."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from wattbit import perform
from wattbit import run as runs
from wattbit.errors import WattbitError
from wattbit.presets import run_config
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


def test_a_second_start_leaves_the_firsts_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "RUNS", tmp_path)
    given = run_config("tiny", None, "virtual-z2", 0)
    create, held = Run.create, ExitStack()

    def create_and_lose(root: Path, config: RunConfig) -> Run:
        run = create(root, config)
        held.enter_context(run.lock())
        return run

    monkeypatch.setattr(Run, "create", create_and_lose)
    with held, pytest.raises(WattbitError, match="in use by another command"):
        perform.start(given, "data", as_json=False)
    assert (tmp_path / given.digest / "config.json").is_file()


def test_a_start_that_fails_at_once_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "RUNS", tmp_path)
    with pytest.raises(WattbitError, match="nowhere"):
        perform.start(run_config("tiny", str(tmp_path / "nowhere"), "virtual-z2", 0), "data", as_json=False)
    assert not any(tmp_path.iterdir())


def test_a_text_too_short_to_train_on_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "RUNS", tmp_path / "runs")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.txt").write_text("".join(f"line {i} of a text\n" for i in range(400)))
    (tmp_path / "text" / "valid.txt").write_text("a few words\n")
    with pytest.raises(WattbitError, match="the valid split has"):
        perform.start(run_config("tiny", str(tmp_path / "text"), "virtual-z2", 0), "train", as_json=False)
    assert not any((tmp_path / "runs").iterdir())


@pytest.mark.parametrize("name", ["shell.py", "recipe.py", "part/own.py"])
def test_code_that_folders_share_counts_as_each_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "part").mkdir()
    for file in (*runs.SHARED, "part/own.py"):
        (tmp_path / file).write_text("")
    monkeypatch.setattr(runs, "PACKAGE", tmp_path)
    before = runs.code_digest.__wrapped__("part")
    (tmp_path / name).write_text("x = 1")
    assert runs.code_digest.__wrapped__("part") != before


def test_latest_of_none(tmp_path: Path) -> None:
    with pytest.raises(WattbitError, match="make one with `wattbit train`"):
        Run.latest(tmp_path)
