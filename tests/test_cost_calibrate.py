"""`wattbit calibrate` from its words to its file, and searches that are priced by what it wrote."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tests.board_support import cache_or_skip
from wattbit.cli import main
from wattbit.display import Display
from wattbit.errors import WattbitError
from wattbit.metering import cost_model, search_meter
from wattbit.plan import Allocation, Cost, ExpertId, ExpertShape, Workload
from wattbit.policy.cost.calibration import Calibration
from wattbit.policy.cost.cores import CoresDemand
from wattbit.tvm_schedules import host_meter as meters
from wattbit.tvm_schedules.cores import host_core
from wattbit.tvm_schedules.host_meter import expert_bytes, routing

IDS = [ExpertId(layer, e) for layer in range(2) for e in range(4)]
SHAPE = ExpertShape(512, 1024)


def query(bits: int, batch: int) -> tuple[Allocation, Workload]:
    """All experts of these bits, and a workload of batches in which each is as likely."""
    return Allocation.of(dict.fromkeys(IDS, bits)), Workload(1000, 2, tuple((e, 0.25) for e in IDS), batch)


class Law:
    """Seconds by bytes, products and calls of a core's demand; fails at the calls of these numbers."""

    core = host_core()

    def __init__(self, *bad: int) -> None:
        self.bad, self.calls = set(bad), 0

    def cost(self, allocation: Allocation, loaded: Workload) -> Cost:
        self.calls += 1
        if self.calls in self.bad:
            raise KeyboardInterrupt
        sizes = {bits: expert_bytes(self.core, bits, SHAPE) for bits in (2, 3, 4, 6, 8)}
        demand = CoresDemand(SHAPE, sizes, routing)
        theta = np.array([1e-6, 1e-10, *(1e-12 * k for k in range(1, 11))])
        seconds = float(demand.work(allocation, loaded).binding(theta) @ theta)
        return Cost(seconds, None, demand.memory_bytes(allocation), "measured")


class TestCommand:
    @pytest.fixture
    def law(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Law:
        law = Law()

        @contextmanager
        def fake(*_: object) -> Iterator[Law]:
            yield law

        monkeypatch.setattr(meters, "host_meter", fake)
        monkeypatch.setenv("WATTBIT_CACHE", str(tmp_path))
        return law

    def test_constants_become_a_file_and_a_meter(self, law: Law, tmp_path: Path) -> None:
        done = CliRunner().invoke(main, ["calibrate"])
        assert done.exit_code == 0, done.output
        path = Path(done.stdout.splitlines()[-1])
        assert path.is_relative_to(tmp_path) and path.name == "cores-1.json"
        assert "fitted to measured prices" in done.stdout and "15 held-out prices: off by 0.0% (median)" in done.stdout
        assert "no energy: the target shows no counter of it" in done.stdout
        byte = next(line for line in done.stdout.splitlines() if line.lstrip().startswith("byte, s"))
        assert byte.split()[2] == "1.000e-10"
        found = Calibration.load(path)
        model = cost_model(found, SHAPE)
        with pytest.raises(WattbitError, match="is of experts 512 to 1024, not 64 to 96; calibrate with this --run"):
            cost_model(found, ExpertShape(64, 96))
        shares = tuple((ExpertId(0, e), 0.125) for e in range(8))
        other = Allocation.of({ExpertId(0, e): 4 for e in range(8)})
        price, truth = model.cost(other, Workload(10, 2, shares, 4)), law.cost(other, Workload(10, 2, shares, 4))
        assert price.latency_s == pytest.approx(truth.latency_s) and price.provenance == "modelled"
        assert price.memory_bytes == truth.memory_bytes
        assert not list(path.parent.glob("prices-*")), "another calibration measures again"

    def test_what_is_interrupted_resumes(self, law: Law) -> None:
        law.bad = {40}
        assert CliRunner().invoke(main, ["calibrate", "--rounds", "1"]).exit_code == 130
        done = CliRunner().invoke(main, ["calibrate", "--rounds", "1", "--json"])
        assert done.exit_code == 0, done.output
        assert law.calls == 35 + 15 + 1, "39 prices were kept"
        assert json.loads(done.stdout)["calibration"]["latency"]["samples"] == 35

    def test_a_search_measures_every_mth_price(self, law: Law, tmp_path: Path) -> None:
        log = tmp_path / "search.jsonl"
        assert CliRunner().invoke(main, ["calibrate", "--rounds", "1"]).exit_code == 0
        path = next(tmp_path.rglob("cores-1.json"))
        law.calls = 0
        with search_meter(path, 4, SHAPE, len(IDS), log, Display()) as found:
            costs = [found.cost(*query(bits, batch)) for batch in (1, 4) for bits in (2, 3, 4, 6, 8)]
        assert [cost.provenance == "measured" for cost in costs] == [k % 4 == 0 for k in range(10)] and law.calls == 3
        with search_meter(path, 4, SHAPE, len(IDS), log, Display()) as again:
            assert again.cost(*query(2, 1)) == costs[0] and law.calls == 3
        with search_meter(path, None, SHAPE, len(IDS), log, Display()) as model:
            assert model.cost(*query(2, 1)).provenance == "modelled"

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--host", "user@nowhere"], "--host needs --board"),
            (["--board", "nothing"], "there is no board 'nothing'"),
            (["--engine", "fpga"], "there is no run"),
        ],
    )
    def test_bad_input_is_one_line(
        self, law: Law, words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(main, ["calibrate", *words])
        assert done.exit_code == 1 and said in done.stderr and "Traceback" not in done.output


@pytest.mark.slow
def test_the_virtual_boards_cores_over_ssh(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_or_skip()
    done = CliRunner().invoke(main, ["calibrate", "--board", "virtual-z2", "--rounds", "1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["calibration"]
    assert found["fitted_on"] == "simulated" and found["origin"]["settings"]["core"] == "cortex-a53"
