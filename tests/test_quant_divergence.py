"""The divergence between predictions: its definition, and why damage is measured by it."""

import pytest
import torch
from torch import Tensor

from wattbit.models import divergence
from wattbit.models.divergence import Predictions

WORDS = 12


def head(x: Tensor) -> Tensor:
    return x @ torch.randn(5, WORDS, generator=torch.Generator().manual_seed(1))


def rows(seed: int, count: int = 40) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunk", [1, 7 * WORDS, 2**24])
def test_it_follows_its_definition_however_the_logits_are_cut(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(divergence, "CHUNK", chunk)
    x, y = rows(0), rows(2)
    p, q = (head(one).double().log_softmax(dim=-1) for one in (x, y))
    expected = (p.exp() * (p - q)).sum(dim=-1)
    predictions = Predictions.of(head, x)
    torch.testing.assert_close(predictions.divergence(head, y).double(), expected, rtol=1e-4, atol=1e-6)
    some = torch.tensor([3, 39, 4])
    torch.testing.assert_close(
        predictions.divergence(head, y[some], some).double(), expected[some], rtol=1e-4, atol=1e-6
    )


def test_it_is_nothing_for_the_model_itself_and_positive_for_any_other():
    x = rows(0)
    predictions = Predictions.of(head, x)
    assert predictions.divergence(head, x).abs().max() < 1e-6
    assert predictions.divergence(head, rows(3)).min() > 0


def test_half_the_change_is_a_quarter_of_it():
    """No term of first order, which the rise of the loss on a text has."""
    x, step = rows(0), 0.05 * rows(3)
    predictions = Predictions.of(head, x)
    whole, half = (predictions.divergence(head, x + part * step).mean().item() for part in (1.0, 0.5))
    assert whole / half == pytest.approx(4, rel=0.05)
