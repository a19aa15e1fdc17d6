"""What stages say once they have ended."""

from wattbit import summary


def test_cotraining_names_every_method_and_what_was_left_out() -> None:
    method = {"mean_bits": 3.5, "perplexity_before": {"mean": 31.0}, "perplexity_after": {"mean": 29.0}}
    said = summary.cotrained({"methods": {"dmpq": method}, "left_out": {"linear": "does not fit"}})
    assert said.splitlines() == [
        "  dmpq      3.50 bits, perplexity 31.00, fine-tuned 29.00 (measured)",
        "  linear    left out: does not fit",
    ]


def test_a_simulation_says_whether_it_was_exact() -> None:
    simulation = {"vectors": 1024, "cycles": 11734, "bit_exact": True}
    assert summary.built(simulation) == "engines: 1,024 vectors bit-exact, 11,734 cycles (simulated)"
    assert "NOT bit-exact" in summary.built(simulation | {"bit_exact": False})


def test_controls_say_a_line_each() -> None:
    assert summary.controlled({"exact": {"cycles_per_token": 45.84}}) == "  exact     45.8 cycles/token (simulated)"
