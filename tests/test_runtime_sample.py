"""Sampling: laws of temperature, top_k and seeds."""

import ctypes
from collections import Counter

import numpy as np
import pytest

from tests.runtime_support import build_host, gated_model
from wattbit.errors import WattbitError
from wattbit.tvm_schedules.model.runtime import Decoder, Sampling

LOGITS = np.array([0.5, 2.0, -1.0, 2.0, 1.0, -30.0])


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(build_host(gated_model("mixtral", "uniform8").portable, tmp_path_factory.mktemp("model")), threads=1)


def draw(decoder: Decoder, count: int, temperature: float, top_k: int = 0, seed: int = 1) -> Counter[int]:
    state = ctypes.c_uint64(seed)
    return Counter(decoder.sample(LOGITS, Sampling(temperature, top_k), state) for _ in range(count))


def test_greedy_takes_the_lower_of_equal_tokens(decoder: Decoder) -> None:
    assert draw(decoder, 5, 0.0) == {1: 5}
    assert draw(decoder, 5, 3.0, top_k=1) == {1: 5}


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (2.5, 0), (0.7, 3), (1.0, 4), (1.0, 99)])
def test_frequencies_are_those_of_the_softmax(decoder: Decoder, temperature: float, top_k: int) -> None:
    count = 20_000
    found = draw(decoder, count, temperature, top_k)
    kept = np.argsort(-LOGITS, kind="stable")[: top_k or len(LOGITS)]
    chance = np.zeros(len(LOGITS))
    chance[kept] = np.exp(LOGITS[kept] / temperature)
    chance /= chance.sum()
    for token, p in enumerate(chance):
        assert abs(found[token] - count * p) <= 5 * np.sqrt(count * p * (1 - p)) + 1e-9


def test_a_seed_repeats_its_draws(decoder: Decoder) -> None:
    def tokens(seed: int) -> list[int]:
        state = ctypes.c_uint64(seed)
        return [decoder.sample(LOGITS, Sampling(1.0), state) for _ in range(30)]

    assert tokens(4) == tokens(4)
    assert len({tuple(tokens(seed)) for seed in range(10)}) == 10


def test_the_generator_is_splitmix64(decoder: Decoder) -> None:
    """Its published first outputs for seed 1234567: the state goes on by the golden ratio, whatever is drawn."""
    state = ctypes.c_uint64(1234567)
    decoder.sample(LOGITS, Sampling(1.0), state)
    assert state.value == (1234567 + 0x9E3779B97F4A7C15) % 2**64
    uniform = (6457827717110365317 >> 11) * 2.0**-53  # the first output
    chance = np.exp(LOGITS - LOGITS.max())
    expected = int(np.searchsorted(np.cumsum(chance / chance.sum()), uniform, side="right"))
    assert decoder.sample(LOGITS, Sampling(1.0), ctypes.c_uint64(1234567)) == expected


@pytest.mark.parametrize(
    ("temperature", "top_k", "message"),
    [
        (-0.5, 0, "temperature must be 0 to 1e6, not -0.5"),
        (float("nan"), 0, "temperature must be 0 to 1e6, not -?nan"),
        (1.0, -1, "top_k must be 0 or more, not -1"),
    ],
)
def test_strange_settings_are_refused(decoder: Decoder, temperature: float, top_k: int, message: str) -> None:
    with pytest.raises(WattbitError, match=message):
        draw(decoder, 1, temperature, top_k)
