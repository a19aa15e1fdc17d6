"""The GPU kernels against float64: on the card where there is one, else on the CPU."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.gpu_support import CARD, make_experts, matrix, needs_card, run
from wattbit.arith import ExpertInts
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId, Precision
from wattbit.tvm_schedules.gpu import kernels
from wattbit.tvm_schedules.gpu.bank import Bank, Expert, Matrix, Shape
from wattbit.tvm_schedules.gpu.layer import Layer
from wattbit.tvm_schedules.gpu.tiling import Tiling, Work, choose

TOLERANCE = 3e-3  # results are rounded to bfloat16, which makes 2e-3
DEVICE = torch.device("cuda" if CARD else "cpu")


@pytest.mark.parametrize(
    ("shape", "bits", "top_k", "tokens"),
    [
        (Shape(5, 64, 32), (2, 3, 4, 6, 8), 2, 3),
        (Shape(2, 100, 50, swiglu=False), (3, 6), 1, 1),  # neither is a multiple of 16
        (Shape(2, 256, 32, swiglu=False, group=32), (2, 4), 2, 1),
        (Shape(4, 70, 33, group=32), (3, 8), 1, 9),  # more tokens than one tile; empty experts
    ],
)
def test_a_layer_of_mixed_widths_equals_the_reference(
    shape: Shape, bits: tuple[int, ...], top_k: int, tokens: int
) -> None:
    layer, x, error = run(shape, bits, top_k, tokens)
    assert error < TOLERANCE
    first = layer(x).clone()
    assert torch.equal(layer(x), first), "a second run differs"


@pytest.mark.parametrize(
    ("shape", "tokens", "up", "down"),
    [  # a block with two row tiles and one left over; blocks that share the depth; two tiles of tokens, fewer warps
        (Shape(3, 256, 200, swiglu=False), 1, Tiling(warps=4, each=2), Tiling(warps=2, splits=3, each=3)),
        (Shape(2, 100, 136), 12, Tiling(warps=2, token_tiles=2, each=4), Tiling(warps=2, token_tiles=2, splits=2)),
        (Shape(2, 128, 128, group=128), 9, Tiling(warps=2, token_tiles=2), Tiling(warps=2, token_tiles=2, splits=2)),
        (Shape(2, 256, 128, group=128), 1, Tiling(warps=2, ring=12288), Tiling(warps=4, splits=2, each=2)),
    ],
)
def test_every_way_to_cut_a_launch_gives_the_same(shape: Shape, tokens: int, up: Tiling, down: Tiling) -> None:
    _, _, error = run(shape, (2, 3, 6), 2, tokens, up_tiling=up, down_tiling=down)
    assert error < TOLERANCE


@pytest.mark.parametrize(
    ("shape", "blocks", "splits", "early"),
    [  # no more blocks than slots; rows and columns left over; blocks that get nothing, and the depth in four
        (Shape(4, 256, 200), 1, 1, 1),
        (Shape(3, 330, 264, swiglu=False), 3, 2, 2),
        (Shape(5, 256, 512, group=128), 20, 4, 32),
    ],
)
def test_blocks_dealt_to_experts_by_their_widths_give_the_same(
    shape: Shape, blocks: int, splits: int, early: int
) -> None:
    up = Tiling(warps=2, ring=12288, blocks=blocks, each=0, spread=True)
    down = Tiling(warps=3, splits=splits, ring=12288, blocks=blocks * splits, each=0, early=early, spread=True)
    layer, x, error = run(shape, (2, 8, 3), 3, 1, up_tiling=up, down_tiling=down)
    assert error < TOLERANCE
    first = layer(x).clone()
    assert torch.equal(layer(x), first), "a second run differs"


@pytest.mark.parametrize("is_down", [False, True])
def test_blocks_are_dealt_where_widths_differ_and_a_warp_has_room_for_the_slots(is_down: bool) -> None:
    mixed = Work(1 << 2 | 1 << 8, 4096, 14336, False, 2, 1.0, is_one=True, is_down=is_down)
    assert choose(mixed, 132).spread
    for other in ({"widths": 1 << 8}, {"slots": 33}, {"tokens": 2.0, "is_one": False}):
        assert not choose(replace(mixed, **other), 132).spread


@pytest.mark.parametrize("size", [2.0**-40, 2.0**40])
def test_small_and_large_inputs_keep_their_precision(size: float) -> None:
    """Codes are multiplied as bfloat16 numbers near 2^-133: neither they nor their products may be lost."""
    shape = Shape(2, 64, 64, swiglu=False)
    layer, x, _ = run(shape, (2, 8), 2, 1)
    layer.router.zero_()  # both experts count for a half, whatever the size
    y = layer(x).double()
    torch.testing.assert_close(layer((x * size).contiguous()).double() / size, y, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_one_tokens_sums_are_exact(bits: int) -> None:
    """Integers times integers: the hidden activations are the exact sums, rounded once."""
    shape, random = Shape(1, 200, 128, swiglu=False), np.random.default_rng(bits)
    top = 2 ** (bits - 1) - 1
    first, second = (random.integers(-top, top + 1, size).astype(np.int8) for size in ((128, 200), (200, 128)))
    expert = Expert(*(Matrix(codes, np.ones(len(codes), np.float32), bits) for codes in (first, second)))
    bank = Bank.of(shape, [expert], DEVICE)
    x = torch.from_numpy(random.integers(-100, 101, (1, 200))).to(torch.bfloat16).to(DEVICE)
    layer = Layer(bank, torch.zeros(1, 200, dtype=torch.bfloat16, device=DEVICE), 1, 1)
    layer(x)
    wanted = torch.from_numpy(first @ x.double().cpu().numpy()[0]).clamp(min=0).to(torch.bfloat16)
    assert torch.equal(layer.hidden[0].cpu(), wanted)


def test_a_large_input_does_not_drown_small_ones() -> None:
    """Beside an input 2^12 times as large that no weight reads, the others keep the precision of bfloat16."""
    shape = Shape(1, 64, 64, swiglu=False)
    layer, x, _ = run(shape, (8,), 1, 1)
    experts = make_experts(shape, (8,), 0)
    experts[0].first.codes[:, 5] = 0
    layer.bank = Bank.of(shape, experts, DEVICE)
    layer.router.zero_()
    x[0, 5] = 0
    wanted = layer(x).double()
    x[0, 5] = 2.0**12
    torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows_and_spoils_no_later_call(tokens: int, value: float) -> None:
    layer, x, _ = run(Shape(3, 64, 64, swiglu=False), (2, 4, 8), 2, tokens)
    wanted = layer(x).clone()
    bad = x.clone()
    bad[0, 7] = value
    assert not layer(bad)[0].isfinite().any()
    assert torch.equal(layer(x), wanted)


def test_experts_that_got_no_token_add_nothing() -> None:
    """One token, eight experts: seven slots' weights are never read, whatever they hold."""
    shape = Shape(8, 64, 32, swiglu=False)
    layer, x, error = run(shape, (4,), 1, 1)
    assert error < TOLERANCE
    chosen = int((x.double() @ layer.router.double().T).argmax())
    y = layer(x).clone()
    begin, _ = layer.bank.up.start[chosen, 4]
    size = layer.bank.up.words.numel() // 8
    kept = layer.bank.up.words[begin : begin + size].clone()
    layer.bank.up.words.fill_(-1)
    layer.bank.up.words[begin : begin + size] = kept
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("renormalise", [True, False])
def test_the_router_chooses_and_weighs_as_softmax_and_topk(renormalise: bool) -> None:
    layer, x, error = run(Shape(6, 32, 16, swiglu=False), (2,), 3, 4, renormalise=renormalise)
    assert error < TOLERANCE
    pairs = layer.slot_pairs[layer.slot_pairs >= 0]
    assert sorted(pairs.tolist()) == list(range(12))
    share = (x.double() @ layer.router.double().T).softmax(dim=-1).topk(3).values.sum(dim=1)
    wanted = torch.ones_like(share) if renormalise else share
    torch.testing.assert_close(layer.weight.view(4, 3).sum(dim=1).double(), wanted, atol=1e-5, rtol=0)


def test_widths_may_change_under_a_layer() -> None:
    """A bank that holds experts at two widths serves both, with one layer."""
    shape = Shape(2, 64, 32, swiglu=False)
    narrow, wide = make_experts(shape, (2,), 1), make_experts(shape, (8,), 1)
    bank = Bank(shape, DEVICE)
    for store, part in ((bank.up, "first"), (bank.down, "second")):
        store.fill({(e, b): getattr(of[e], part) for b, of in ((2, narrow), (8, wide)) for e in range(2)})
    bank.choose([2, 2])
    router = torch.eye(2, 64, dtype=torch.bfloat16, device=DEVICE)
    layer = Layer(bank, router, 2, 1)
    x = torch.ones(1, 64, dtype=torch.bfloat16, device=DEVICE)
    results = {}
    for bits, experts in ((2, narrow), (8, wide)):
        bank.choose([bits, bits])
        results[bits] = layer(x).double().cpu().numpy()[0]
        given = x.double().cpu().numpy()[0]
        wanted = sum(0.5 * e.second.real() @ np.maximum(e.first.real() @ given, 0) for e in experts)
        assert np.linalg.norm(results[bits] - wanted) < 2e-2 * np.linalg.norm(wanted)
    with pytest.raises(WattbitError, match=r"not stored are \(expert, bits\) \[\(0, 4\)\]"):
        bank.choose([4, 8])


def test_a_tiling_without_room_for_two_stages_is_refused_by_the_compiler() -> None:
    with pytest.raises(WattbitError, match="failed with exit status"):
        run(Shape(2, 64, 32), (8,), 1, 1, up_tiling=Tiling(ring=2048))


@pytest.mark.parametrize("groups", [False, True])
def test_a_depth_whose_inputs_have_no_room_is_named(groups: bool) -> None:
    with pytest.raises(WattbitError, match="no GPU kernel for matrices of 100000 columns"):
        choose(Work(1 << 4, 64, 100_000, groups, 2, 1.0, is_one=True, is_down=False), 132)


@pytest.mark.parametrize("row_tiles", [1, 7, 448])
@pytest.mark.parametrize("tiling", [Tiling(each=1), Tiling(each=3), Tiling(each=0), Tiling(each=0, splits=4)])
def test_blocks_are_no_more_than_row_tiles(tiling: Tiling, row_tiles: int) -> None:
    assert 1 <= tiling.row_blocks(row_tiles, 2, 132) <= row_tiles


def test_no_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    kernels._on_host.cache_clear()
    with pytest.raises(WattbitError, match="there is no g"):
        kernels.kernel(torch.device("cpu"), "gemv", {"WARPS": 1})


def test_an_exported_expert_keeps_its_integers() -> None:
    """An export's codes times its requant scales are the kernel's real weights."""
    random = np.random.default_rng(3)
    w1, w2 = matrix(random, 8, 16, 4, 0).codes, matrix(random, 16, 8, 4, 0).codes
    m1, m2 = np.arange(1, 9, dtype=np.int32), np.arange(1, 17, dtype=np.int32)
    ints = ExpertInts(ExpertId(0, 0), Precision(4), w1, w2, m1, m2, 5, 7, -4, -3, -2)
    expert = Expert.of_ints(ints)
    np.testing.assert_allclose(expert.first.real(), w1 * m1[:, None] * 2.0 ** (-3 + 4 - 5))
    np.testing.assert_allclose(expert.second.real(), w2 * m2[:, None] * 2.0 ** (-2 + 3 - 7))


def test_bad_calls_are_refused() -> None:
    shape = Shape(2, 64, 32)
    bank = Bank.of(shape, make_experts(shape, (4,), 0), DEVICE)
    router = torch.zeros(2, 64, dtype=torch.bfloat16, device=DEVICE)
    for tokens in (0, 65):
        with pytest.raises(WattbitError, match=f"no kernel for {tokens} tokens; give 1 to 64"):
            Layer(bank, router, 1, tokens)
    with pytest.raises(WattbitError, match="top_k must be between 1 and the 2 experts, not 3"):
        Layer(bank, router, 3, 1)
    layer = Layer(bank, router, 1, 2)
    for x in (torch.zeros(1, 64, dtype=torch.bfloat16), torch.zeros(2, 64)):
        with pytest.raises(WattbitError, match=r"contiguous bfloat16 \[2, 64\]"):
            layer(x.to(DEVICE))
    with pytest.raises(WattbitError, match="has 2 experts, not 1"):
        Bank.of(shape, make_experts(shape, (4,), 0)[:1], DEVICE)
    with pytest.raises(WattbitError, match="no kernel for it beside"):
        Bank.of(shape, make_experts(Shape(2, 64, 48), (4,), 0), DEVICE)


@pytest.mark.parametrize("bits", [(2,), (3,), (4,), (6,), (8,), (2, 3, 4, 6, 8)])
@pytest.mark.parametrize(
    ("shape", "top_k", "tokens"),
    [
        (Shape(16, 1024, 2048), 2, 1),
        (Shape(64, 512, 768), 8, 64),
        (Shape(8, 2048, 1408), 2, 16),
        (Shape(8, 1024, 512, group=128), 2, 32),
        (Shape(8, 777, 333, swiglu=False), 3, 7),
    ],
)
class TestOnTheCard:
    pytestmark = needs_card

    def test_a_layer_equals_the_reference(self, shape: Shape, top_k: int, tokens: int, bits: tuple[int, ...]) -> None:
        layer, x, error = run(shape, bits, top_k, tokens, seed=tokens)
        assert error < TOLERANCE
        first = layer(x).clone()
        for _ in range(20):
            assert torch.equal(layer(x), first), "the order of programs shows in the result"
