"""The report's rows: what is simulated, what is modelled, and how figures are printed."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from wattbit import pipeline
from wattbit.presets import run_config
from wattbit.report import (
    METHODS,
    command,
    cycles_provenance,
    headline,
    left_out,
    main_table,
    rows,
    significant,
    weighed,
)
from wattbit.run import Run

SPREAD = {"mean": 30.0, "std": None, "values": [30.0]}
COTRAIN = {
    "methods": {
        name: {
            "mean_bits": 4.0,
            "memory_bytes": 286720,
            "perplexity_before": SPREAD,
            "perplexity_after": SPREAD | ({"std": 0.7, "values": [29.0, 30.0, 31.0]} if name == "random" else {}),
        }
        for name in METHODS
    },
    "left_out": {},
}
CONTROLS = {
    name: {
        "cycles_per_token": 240.0 + i,
        "ms_per_token": 2.4e-3,
        "modelled_cycles_per_token": 239.0,
        "planned_cycles_per_token": 120.0,
    }
    for i, name in enumerate(METHODS)
    if name != "dmpq"
}
BENCH = {
    "fpga": {"cycles_per_token": 250.0, "ms_per_token": 2.5e-3, "provenance": "simulated"},
    "energy": {"net_mj_per_token": 0.00053126},
    "packets_per_token": 4,
}
BUILD = {
    "plan": {"batch": 256, "batch_cycles": 256 * 200.0},
    "simulation": {"vectors": 1024, "modelled_cycles": 256 * 249.0},
}


def test_every_method_has_cycles_and_only_the_boards_has_energy() -> None:
    found = {row.method: row for row in rows(COTRAIN, CONTROLS, BENCH, BUILD)}
    assert list(found) == list(METHODS)
    for place, name in enumerate(CONTROLS):
        assert found[name].cycles_per_token == 240 + place
        assert found[name].energy_mj_per_token is None
    assert found["dmpq"].cycles_per_token == 250
    assert found["dmpq"].energy_mj_per_token == 0.00053126


def test_the_models_error_and_the_scatter_of_batches_are_two_figures() -> None:
    found = {row.method: row for row in rows(COTRAIN, CONTROLS, BENCH, BUILD)}
    assert found["uniform8"].model_error == pytest.approx(239 / 240 - 1)
    assert found["uniform8"].off_plan == pytest.approx(240 / 120 - 1)
    assert found["dmpq"].model_error == pytest.approx(249 / 250 - 1)
    assert found["dmpq"].off_plan == pytest.approx(250 / 200 - 1)


def test_the_table_prints_tiny_figures_and_says_where_cycles_are_from() -> None:
    head, _, *lines = main_table(rows(COTRAIN, CONTROLS, BENCH, BUILD), "simulated").splitlines()
    assert "| cycles/token, this batch (simulated) | ms/token (simulated) | mJ/token (simulated) |" in head
    assert lines[0].endswith("| 120.0 | 239.0 | 240.0 | 0.00240 | - |")
    assert lines[-1].endswith("| 200.0 | 249.0 | 250.0 | 0.00250 | 0.000531 |")
    assert cycles_provenance("measured") == "simulated; DMPQ measured"


def test_a_control_that_the_chip_cannot_hold_has_no_row_but_a_reason() -> None:
    fits = {name: method for name, method in COTRAIN["methods"].items() if name not in ("uniform8", "random")}
    why = {"uniform8": "lut: 3342 of 2400", "random": "lut: 3000 of 2400"}
    some = {"methods": fits, "left_out": why}
    found = rows(some, CONTROLS, BENCH, BUILD)
    assert [row.method for row in found] == ["uniform4", "linear", "exact", "dmpq"]
    assert headline(found, "simulated").startswith("DMPQ against uniform 4 bit: 0 % less")
    assert (
        left_out(some)
        == " No row for uniform 8 bit: lut: 3342 of 2400. No row for random, same budget: lut: 3000 of 2400."
    )
    assert headline(found[-1:], "simulated") == "DMPQ: the chip can hold none of the controls."


def test_the_headline_is_the_policy_against_static_8_bit() -> None:
    found = rows(COTRAIN, CONTROLS, BENCH, BUILD)
    better = replace(found[-1], memory_bytes=found[0].memory_bytes // 2, perplexity=29.7, ms_per_token=1.2e-3)
    assert headline([*found[:-1], better], "simulated") == (
        "DMPQ against uniform 8 bit: 50 % less expert memory (modelled), 2.00x the speed (simulated, one batch; "
        "0.60x modelled over many), perplexity -1.00 % (measured after equal fine-tuning)."
    )


@pytest.mark.parametrize(
    ("value", "printed"),
    [(0.00206891, "0.00207"), (0.000999999, "0.00100"), (1.33e-6, "0.00000133"), (1234.5, "1,230"), (9.999, "10.0")],
)
def test_three_significant_digits(value: float, printed: str) -> None:
    assert significant(value) == printed
    assert significant(-value) == f"-{printed}"


def test_nothing_and_zero_are_not_the_same() -> None:
    assert (significant(None), significant(0.0)) == ("-", "0")


def test_no_energy_is_said_with_its_reason() -> None:
    assert weighed({"reason": "the board has no sensor"}) == "none: the board has no sensor."
    some = {"reason": None, "net_mj_per_token": 0.25, "net_mj_per_token_half": 0.01, "absolute_mj_per_token": 0.5}
    assert weighed(some | {"provenance": "measured", "rail": "12V", "pairs": 6}).startswith("0.250 ± 0.0100 mJ a token")


def test_the_command_is_one_that_a_shell_takes() -> None:
    assert (
        command(run_config("tiny", None, "virtual-z2", 3)) == "wattbit demo --preset tiny --seed 3 --board virtual-z2"
    )
    assert shlex.split(command(run_config("tiny", "my texts", "virtual-z2", 0)))[-2:] == ["--data", "my texts"]


@pytest.mark.parametrize("name", ["report.py", "plots.py"])
def test_a_report_of_other_code_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    made = Run.create(tmp_path, run_config("tiny", None, "virtual-z2", 0))
    for file in ("report.py", "plots.py"):
        (tmp_path / file).write_text("")
    monkeypatch.setattr(pipeline, "PACKAGE", tmp_path)
    before = pipeline.PIPELINE.key("report", made)
    (tmp_path / name).write_text("x = 1")
    assert pipeline.PIPELINE.key("report", made) != before
