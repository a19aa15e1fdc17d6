"""Run folders: `runs/<digest of the configuration>/`, their stages, and which of them are done.

A stage is done when `stages/NAME.json` holds the key that it would get now and its files are as long as it left them;
what was deleted or cut short is made again. The key covers the configuration, the code of the folders it uses and the
keys of the stages it needs, so that a change redoes what depends on it and nothing else. An interrupted stage has
written no record: the next run takes it up again.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from wattbit.errors import WattbitError
from wattbit.files import digest_json, read_json, sha256_file, write_json, write_text
from wattbit.progress import Progress

PACKAGE = Path(__file__).resolve().parent
SHARED = ("plan.py", "arith.py", "shell.py", "recipe.py", "clock.py")  # what folders share
CODE_SUFFIXES = (".py", ".sv", ".v", ".c", ".h", ".cpp", ".cu", ".toml", ".sh")


def cache_folder() -> Path:
    """Where what is independent of a run is kept: $WATTBIT_CACHE, else wattbit/ in the user's cache folder."""
    named = os.environ.get("WATTBIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(named).resolve() if named else Path(base) / "wattbit"


def tilings_file(board: str) -> Path:
    """Where `wattbit tune` keeps a board's tilings; "localhost" is this machine."""
    return cache_folder() / "tuned" / f"{board}.toml"


def tuned(board: str) -> Path | None:
    """That file, None where the board was not tuned."""
    return path if (path := tilings_file(board)).is_file() else None


@cache
def code_digest(part: str) -> str:
    """Digest of one folder's source files and of what the folders share: types, arithmetic, registers and packets."""
    files = [path for path in (PACKAGE / part).resolve().rglob("*") if path.suffix in CODE_SUFFIXES]
    total = hashlib.sha256()
    for path in [*(PACKAGE / name for name in SHARED), *sorted(files)]:
        total.update(path.name.encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class RunConfig:
    """What makes a run; everything else follows from it."""

    preset: str
    data: str | None
    board: str
    seed: int
    settings: Mapping[str, Any]

    @property
    def digest(self) -> str:
        return digest_json(asdict(self))


@dataclass(frozen=True)
class Run:
    """A run folder and its configuration."""

    folder: Path
    config: RunConfig

    @classmethod
    def create(cls, root: Path, config: RunConfig) -> Self:
        """The run of this configuration under `root`, made if it is not there."""
        run = cls(root / config.digest, config)
        if not (run.folder / "config.json").exists():
            write_json(run.folder / "config.json", asdict(config))
        return cls.open(run.folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """An existing run; WattbitError when the folder is none or belongs to another configuration."""
        if not (folder / "config.json").is_file():
            raise WattbitError(f"{folder} is no run folder (it has no config.json); make one with `wattbit train`")
        record = read_json(folder / "config.json")
        try:
            config = RunConfig(**record)
        except TypeError as error:
            raise WattbitError(f"{folder}/config.json is of another version ({error}); start a new run") from None
        if folder.resolve().name != config.digest:
            raise WattbitError(
                f"{folder} holds the configuration of run {config.digest}: "
                "it is a run folder of another model; rename it or start a new run"
            )
        return cls(folder, config)

    @classmethod
    def latest(cls, root: Path) -> Self:
        """The run under `root` that was worked on last."""
        folders = [path.parent for path in root.glob("*/config.json")]
        if not folders:
            raise WattbitError(f"there is no run under {root}; make one with `wattbit train`")
        return cls.open(max(folders, key=lambda folder: folder.stat().st_mtime))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one command; WattbitError when another command holds it."""
        with self.path(".lock").open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise WattbitError(f"{self.folder} is in use by another command; wait for it or stop it") from None
            os.utime(self.folder)
            yield

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)

    def record(self, stage: str) -> dict[str, Any] | None:
        """What `stages/STAGE.json` says, or None before the stage has ended once."""
        path = self.path("stages", f"{stage}.json")
        return dict(read_json(path)) if path.exists() else None


@dataclass(frozen=True)
class Stage:
    """One step of the path: what it needs, which folders' code it runs, and the work itself.

    code: the folders whose sources it depends on.
    settings: the keys of the configuration that it depends on.
    outputs: its folders in the run, which no other stage writes to; what another configuration or other code left there
    is removed.
    work: takes the run and a progress callback, returns a JSON object that its record keeps.
    reads: the files outside of the run that it depends on, where there are any.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    code: tuple[str, ...]
    settings: tuple[str, ...]
    outputs: tuple[str, ...]
    work: Callable[[Run, Progress], dict[str, Any]]
    reads: Callable[[Run], tuple[Path, ...]] = lambda run: ()


class Pipeline:
    """Stages in order, and the running of one with everything that it needs."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = {stage.name: stage for stage in stages}

    def key(self, name: str, run: Run) -> str:
        stage = self.stages[name]
        known = asdict(run.config) | dict(run.config.settings)
        parts: dict[str, Any] = {
            "stage": name,
            "settings": {setting: known[setting] for setting in stage.settings},
            "code": [code_digest(part) for part in stage.code],
            "needs": [self.key(need, run) for need in stage.needs],
        }
        if read := [sha256_file(path) for path in stage.reads(run)]:
            parts["reads"] = read
        return digest_json(parts)

    def done(self, name: str, run: Run) -> bool:
        """Whether the stage has ended with the key that it would get now, and its files are as it left them."""
        record = run.record(name)
        if record is None or record["key"] != self.key(name, run):
            return False
        return bool(record["files"] == self.files(name, run))

    def files(self, name: str, run: Run) -> dict[str, int]:
        """Length in bytes of every file that the stage has left in the run."""
        paths = (path for output in self.stages[name].outputs for path in sorted(run.path(output).rglob("*")))
        return {str(path.relative_to(run.folder)): path.stat().st_size for path in paths if path.is_file()}

    def pending(self, name: str, run: Run) -> list[Stage]:
        """The stages still to be run for `name`, in order, itself last."""
        found: list[Stage] = []
        for need in self.stages[name].needs:
            found += [stage for stage in self.pending(need, run) if stage not in found]
        if not self.done(name, run):
            found.append(self.stages[name])
        return found

    def execute(self, stage: Stage, run: Run, progress: Progress) -> dict[str, Any]:
        """Run one stage whose needs are met and record it; an interruption leaves it to be resumed."""
        key = self.key(stage.name, run)
        started, ended = (run.path("stages", f"{stage.name}.{suffix}") for suffix in ("started", "json"))
        if ended.exists() or not started.exists() or started.read_text() != key:
            ended.unlink(missing_ok=True)
            for output in stage.outputs:
                shutil.rmtree(run.path(output), ignore_errors=True)
            write_text(started, key)
        begin = time.monotonic()
        result = stage.work(run, progress)
        seconds = round(time.monotonic() - begin, 2)
        record = {"key": key, "seconds": seconds, "result": result, "files": self.files(stage.name, run)}
        write_json(ended, record)
        return record
