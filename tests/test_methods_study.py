"""What a study of benchmarks/methods.py keeps says how it was made, and does not mix with what was made otherwise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from study_jobs import Settings
from study_records import Records

from wattbit.errors import WattbitError
from wattbit.files import read_json, write_json


def settings(folder: Path, **changed: Any) -> Settings:
    return replace(Settings("tiny", (0, 1), folder / "data", None, (), folder), **changed)


def test_a_study_goes_on_from_what_it_kept(tmp_path: Path) -> None:
    records = Records(settings(tmp_path))
    records[1]["tuned"]["uniform8"] = {"mean_bits": 8.0}
    records.say("tuned")
    again = Records(settings(tmp_path, seconds=5.0))  # more time makes no other study
    assert again[1]["tuned"] == {"uniform8": {"mean_bits": 8.0}}
    assert again[0]["tuned"] == {}


@pytest.mark.parametrize("changed", [{"steps": 7}, {"iterations": 7}, {"judged": 7}, {"glue_steps": 7}])
def test_other_settings_are_another_study(tmp_path: Path, changed: dict[str, int]) -> None:
    Records(settings(tmp_path)).say("float")
    with pytest.raises(WattbitError, match=rf"with {next(iter(changed))} \w+, not 7; give another --studies folder"):
        Records(settings(tmp_path, **changed))


@pytest.mark.parametrize("name", ["damage", "quantizer"])
def test_a_record_of_another_damage_is_refused(tmp_path: Path, name: str) -> None:
    """Also one that does not say, as records were before they did."""
    one = settings(tmp_path)
    Records(one).say("float")
    kept = read_json(one.file(0))
    write_json(one.file(0), kept | {"made_with": kept["made_with"] | {name: "rise of the loss"}})
    with pytest.raises(WattbitError, match=f"was made with {name} rise of the loss"):
        Records(one)
    write_json(one.file(0), {key: value for key, value in kept.items() if key != "made_with"})
    with pytest.raises(WattbitError, match="was made with damage not said"):
        Records(one)
