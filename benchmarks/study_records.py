"""What a study of `benchmarks/methods.py` has found of each seed, in a JSON file for each, and the study's clock."""

import time

from study_jobs import Record, Settings

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json
from wattbit.plan import ExpertStats


def statistics(record: Record) -> tuple[ExpertStats, ...]:
    return tuple(ExpertStats.from_json(one) for one in record["stats"])


class Records:
    """Records by seed, as an earlier run left them. WattbitError where that was made with other settings."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.doing = "training"  # named where it fails
        self._start = time.monotonic()
        self._found = {seed: self._open(seed) for seed in settings.seeds}

    def __getitem__(self, seed: int) -> Record:
        return self._found[seed]

    def _open(self, seed: int) -> Record:
        path, made_with = self.settings.file(seed), self.settings.made_with
        found: Record = read_json(path) if path.exists() else {"made_with": made_with}
        for name, wanted in made_with.items():
            had = found.get("made_with", {}).get(name, "not said")
            if had != wanted:
                raise WattbitError(f"{path} was made with {name} {had}, not {wanted}; give another --studies folder")
        for part in ("recipes", "tuned", "glue", "seconds"):
            found.setdefault(part, {})
        return found | {"preset": self.settings.preset, "seed": seed}

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
