"""A whole mixture-of-experts layer on the card: router, plan, experts of mixed widths, weighted sum. Three launches."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu.bank import Bank, Store
from wattbit.tvm_schedules.gpu.kernels import ExpertArguments, Grid, Launch, RouterArguments, kernel
from wattbit.tvm_schedules.gpu.packing import tiles
from wattbit.tvm_schedules.gpu.tiling import Tiling, Work, choose

TOKENS_MAX = 64
CPU_MULTIPROCESSORS = 2  # what tests on a CPU take a card to have, so that blocks take several tiles


@dataclass(eq=False)
class Layer:
    """y [T, D] of x [T, D] (bfloat16) for a fixed number of tokens T, 1..64, so that it can be one CUDA graph.

    router: [E, D] bfloat16. renormalise: whether the chosen experts' weights sum to 1 (Mixtral; not OLMoE).
    The layer owns its buffers: a result is overwritten by the next call. On a CPU, for tests, its kernels run as
    programs that g++ makes of them.
    """

    bank: Bank
    router: Tensor
    top_k: int
    tokens: int
    renormalise: bool = True
    up_tiling: Tiling | None = None
    down_tiling: Tiling | None = None
    hidden: Tensor = field(init=False)
    y: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape, device = self.bank.shape, self.bank.device
        if not 1 <= self.tokens <= TOKENS_MAX:
            raise WattbitError(f"there is no kernel for {self.tokens} tokens; give 1 to {TOKENS_MAX} at a time")
        if not 1 <= self.top_k <= shape.experts:
            raise WattbitError(f"top_k must be between 1 and the {shape.experts} experts, not {self.top_k}")
        pairs = self.tokens * self.top_k
        self._slots = min(shape.experts, pairs)
        is_card = device.type == "cuda"
        self._multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count if is_card else CPU_MULTIPROCESSORS
        )
        self._up_tiling = self.up_tiling or self._choose(self.bank.up, is_down=False)
        self._down_tiling = self.down_tiling or self._choose(self.bank.down, is_down=True)
        self._up = self._kernel(self.bank.up, self._up_tiling, down=False)
        self._down = self._kernel(self.bank.down, self._down_tiling, down=True)
        constants = {"EXPERTS": shape.experts, "TOKENS": self.tokens, "TOP_K": self.top_k}
        constants |= {
            "RENORMALISE": int(self.renormalise),
            "WARPS": 8 if self.tokens == 1 else 16,
            "BLOCKS": 1,
            "SHARED": 0,
        }
        self._route = kernel(device, "router", constants)
        self.up_slots = torch.zeros(self._slots, 3, dtype=torch.int64, device=device)
        self.down_slots = torch.zeros_like(self.up_slots)
        self.slot_pairs = torch.full((self._slots, self.tokens), -1, dtype=torch.int32, device=device)
        self._arrived = torch.zeros(tiles(shape.d_model) + 1, dtype=torch.int32, device=device)  # last: the router's
        self._logits = torch.empty(self.tokens, shape.experts, device=device)
        self.weight = torch.empty(pairs, device=device)
        self.hidden = torch.empty(pairs, shape.d_hidden, dtype=torch.bfloat16, device=device)
        self._partial = torch.empty(self._down_tiling.splits, pairs, shape.d_model, device=device)
        self.y = torch.empty(self.tokens, shape.d_model, dtype=torch.bfloat16, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        wanted = (self.tokens, self.bank.shape.d_model)
        if tuple(x.shape) != wanted or x.dtype != torch.bfloat16 or not x.is_contiguous():
            raise WattbitError(f"the layer takes contiguous bfloat16 {list(wanted)}, not {x.dtype} {list(x.shape)}")
        self.route(x)
        self.up(x)
        self.down()
        return self.y

    def poison(self) -> None:
        """Fill every buffer that a call must write with NaN, for tests: what is left unwritten then shows."""
        for buffer in (self._logits, self.weight, self.hidden, self._partial, self.y):
            buffer.fill_(float("nan"))

    def route(self, x: Tensor) -> None:
        """Choose and weigh each token's experts."""
        plan = (self.up_slots, self.down_slots, self.slot_pairs, self.weight)
        tensors = (x, self.router, self._logits, self._arrived[-1:], self.bank.table, *plan)
        pointers = [tensor.data_ptr() for tensor in tensors]
        self._route(RouterArguments(*pointers, self.bank.shape.d_model), (self.bank.shape.experts, 1, 1))

    def up(self, x: Tensor) -> None:
        """Hidden activations of every pair."""
        store = self.bank.up
        self._up(self._arguments(store, self.up_slots, x, self.hidden), self._grid(store, self._up_tiling))

    def down(self) -> None:
        """Weighted sums over each token's experts."""
        store = self.bank.down
        self._down(self._arguments(store, self.down_slots, self.hidden, self.y), self._grid(store, self._down_tiling))

    def _choose(self, store: Store, is_down: bool) -> Tiling:
        mean = self.tokens * self.top_k / self._slots
        matrix = (store.rows, store.depth, store.group > 0)
        return choose(
            Work(self.bank.widths, *matrix, self._slots, mean, self.tokens == 1, is_down), self._multiprocessors
        )

    def _grid(self, store: Store, tiling: Tiling) -> Grid:
        if self.tokens == 1 and tiling.spread:
            return max(self._multiprocessors * tiling.blocks // tiling.splits, self._slots), 1, tiling.splits
        blocks = tiling.row_blocks(tiles(store.rows), self._slots, self._multiprocessors)
        return blocks, self._slots, tiling.splits

    def _arguments(self, store: Store, slots: Tensor, inputs: Tensor, outputs: Tensor) -> ExpertArguments:
        tensors = (store.words, store.scales, slots, self.slot_pairs, inputs, outputs)
        scratch = (self._partial, self._arrived, self.weight)
        pointers = [tensor.data_ptr() for tensor in (*tensors, *scratch)]
        return ExpertArguments(*pointers, self.tokens, store.rows, store.depth)

    def _kernel(self, store: Store, tiling: Tiling, down: bool) -> Launch:
        constants = {
            "WIDTHS": self.bank.widths,
            "GROUP": store.group,
            "WARPS": tiling.warps,
            "TOP_K": self.top_k,
            "SPLITS": tiling.splits,
            "DOWN": int(down),
            "GATED": int(self.bank.shape.swiglu and not down),
            "WHOLE": int(store.depth % 128 == 0),
            "RING": tiling.ring,
            "BLOCKS": tiling.blocks,
        }
        if self.tokens == 1:
            shared = tiling.vector_bytes(store.depth, bool(store.group))
            constants |= {"EARLY": tiling.early, "SPREAD": int(tiling.spread)}
            return kernel(self.bank.device, "gemv", constants | {"WARPS": tiling.warps + 1, "SHARED": shared})
        constants |= {"TILES": tiling.token_tiles, "SHARED": tiling.warps * tiling.ring}
        return kernel(self.bank.device, "gemm", constants)
