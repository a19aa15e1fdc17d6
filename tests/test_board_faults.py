"""Every fault, brought about on the light virtual board: nothing is lost, nothing half-installed, figures as before."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_site import CROSS, QUICK
from faults import Faults, scenarios

from tests.board_support import cache_or_skip

pytestmark = pytest.mark.slow

NUMBER = 16


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    cache_or_skip()
    if shutil.which(CROSS) is None:
        pytest.skip(f"{CROSS} is not installed")
    yield Faults(tmp_path_factory.mktemp("faults"))


def test_the_number_of_faults(tmp_path: Path) -> None:
    assert len(scenarios(Faults(tmp_path), quick=False)) == NUMBER
    assert QUICK.pairs >= 5


@pytest.mark.parametrize("number", range(NUMBER))
def test_a_fault_costs_nothing_that_was_measured(faults: Faults, number: int) -> None:
    outcome = scenarios(faults, quick=False)[number]()
    assert outcome.good, outcome
