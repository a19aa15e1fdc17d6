"""benchmarks/gpu_layers.py: which retrained models' widths it times."""

from pathlib import Path

import gpu_layers
import pytest

from wattbit.errors import WattbitError
from wattbit.files import write_json

KEPT = Path(__file__).parents[1] / "results" / "methods.studies.json"


def test_retrained_studies_of_a_preset_are_timed_whatever_follows_its_name():
    found = gpu_layers._retrained(KEPT)
    assert {"wt2-e16", "wt2-e16.repeat", "wt2-e64"} <= set(found)
    assert not any(name.startswith("small") for name in found)  # no preset, and small-e64 is not retrained
    assert list(gpu_layers._retrained(KEPT, ["wt2-e64"])) == ["wt2-e64"]


def test_what_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(WattbitError, match="has no retrained models wt2-e1; it has wt2-e16, "):
        gpu_layers._retrained(KEPT, ["wt2-e1"])
    write_json(tmp_path / "some.json", [])
    with pytest.raises(WattbitError, match=r"some.json has no retrained models; give results"):
        gpu_layers._retrained(tmp_path / "some.json")
