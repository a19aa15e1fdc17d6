"""What a study of `benchmarks/methods.py` has found of each seed, in a JSON file for each, and the study's clock."""

import time

from study_jobs import Record, Settings

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import ExpertStats


def statistics(record: Record) -> tuple[ExpertStats, ...]:
    return tuple(ExpertStats.from_json(one) for one in record["stats"])


class Records:
    """Records by seed, as an earlier run left them. WattbitError where that was made with other settings or texts."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.doing = "training"  # named where it fails
        self._start = time.monotonic()
        self._found = {seed: self._open(seed) for seed in settings.seeds}

    def __getitem__(self, seed: int) -> Record:
        return self._found[seed]

    def _open(self, seed: int) -> Record:
        path, made_with, tasks = self.settings.file(seed), self.settings.made_with, self.settings.made_with_tasks
        found: Record = read_json(path) if path.exists() else {"made_with": made_with}
        for part in ("recipes", "tuned", "glue", "seconds", "made_with_tasks"):
            found.setdefault(part, {})
        found.setdefault("finished", [])
        had = dict.fromkeys(made_with, "not said") | found.get("made_with", {}) | tasks | found["made_with_tasks"]
        for name, wanted in (made_with | tasks).items():
            if had[name] != wanted:
                what = f"{path} was made with {name} {had[name]}, not {wanted}"
                raise WattbitError(f"{what}; give another --studies folder")
        found["made_with_tasks"] |= tasks
        return found | {"preset": self.settings.preset, "seed": seed}

    @property
    def finished(self) -> bool:
        """Whether an earlier run ended that was asked for all of this."""
        asked = self.settings.asked
        return all(
            any(all(set(asked[name]) <= set(before[name]) for name in asked) for before in record["finished"])
            for record in self._found.values()
        )

    def end(self) -> None:
        """The study is over: all is found, or its time has passed."""
        late = self.late()
        for record in self._found.values():
            record["finished"] += [] if late else [self.settings.asked]
        self.say("stopped" if late else "end")

    def late(self, share: float = 1.0) -> bool:
        """Whether so much of the study's time is over."""
        return time.monotonic() - self._start > share * self.settings.seconds

    def say(self, what: str) -> None:
        """Something is done: keep it, with the time."""
        now = time.monotonic() - self._start
        for seed, record in self._found.items():
            record["seconds"][what] = round(now, 1)
            self.save(seed)
        print(f"{now:6.1f} s {self.settings.preset} {what}", flush=True)

    def save(self, seed: int) -> None:
        write_json(self.settings.file(seed), self._found[seed])
