"""Sliding-window perplexity: every token once, by hand and against one pass."""

import math

import pytest
import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.models.evaluation import count_words, perplexity, windows


@pytest.mark.parametrize(
    ("length", "context", "stride"), [(50, 8, 4), (50, 8, 8), (41, 8, 8), (9, 8, 1), (5, 8, 3), (2, 8, 8)]
)
def test_every_token_but_the_first_is_predicted_once(length: int, context: int, stride: int):
    tokens = torch.arange(length)
    contexts, counted = windows(tokens, context, stride)
    predicted = contexts[:, 1:][counted]
    assert sorted(predicted.tolist()) == list(range(1, length))
    place = torch.arange(counted.shape[1]).expand_as(counted)[counted]  # tokens seen before each, less one
    seen = dict(zip(predicted.tolist(), place.tolist(), strict=True))
    full = min(context, length - 1)
    assert all(seen[t] >= min(t - 1, full - stride) for t in seen)


def test_perplexity_is_that_of_the_losses():
    tokens = torch.randint(0, 7, (100,))
    nats = torch.rand(7)

    def losses(contexts: Tensor) -> Tensor:
        return nats[contexts[:, 1:]]  # a model that looks at nothing: the window cannot matter

    found = [perplexity(losses, tokens, 20, 10, stride) for stride in (1, 3, 10)]
    expected = nats[tokens[1:]].double().sum().item()
    for each in found:
        assert each.token == pytest.approx(math.exp(expected / 99), rel=1e-6)
        assert each.word == pytest.approx(math.exp(expected / 20), rel=1e-6)
    assert (found[1].tokens, found[1].words, found[1].context, found[1].stride) == (99, 20, 10, 3)


def test_words_are_counted_as_wikitext_does():
    assert count_words(" \n = A title = \n \n two words\n") == 1 + 5 + 1 + 3


def test_a_long_text_without_white_space_has_no_perplexity_a_word():
    found = perplexity(lambda c: torch.full((len(c), c.shape[1] - 1), 2.0), torch.arange(800), 1, 8, 4)
    assert (found.token, found.word) == (pytest.approx(math.exp(2)), None), "799 tokens of 2 nats are one word"


def test_nonsense_is_refused():
    with pytest.raises(WattbitError, match=r"the stride must be within 1..8, the context's tokens, not 9"):
        windows(torch.arange(50), 8, 9)
    with pytest.raises(WattbitError, match="the text has 1 tokens, at least 2 are needed"):
        windows(torch.arange(1), 8, 4)
    for loss in (math.nan, 1e3):
        with pytest.raises(WattbitError, match=f"the loss is {loss:g} nats a token"):
            perplexity(lambda c, loss=loss: torch.full((len(c), c.shape[1] - 1), loss), torch.arange(9), 3, 4, 2)
