"""A whole mixture-of-experts layer on the card: router, plan, experts of mixed widths, weighted sum. Three launches."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu import routing
from wattbit.tvm_schedules.gpu.bank import Bank, Store
from wattbit.tvm_schedules.gpu.kernels import Arguments, Launch, kernel
from wattbit.tvm_schedules.gpu.packing import tiles
from wattbit.tvm_schedules.gpu.tiling import Tiling, choose, padded

TOKENS_MAX = 64
ROUTER_SHARE = 256


@dataclass(eq=False)
class Layer:
    """y [T, D] of x [T, D] (bfloat16) for a fixed number of tokens T, 1..64, so that it can be one CUDA graph.

    router: [E, D] bfloat16. renormalise: whether the chosen experts' weights sum to 1 (Mixtral; not OLMoE).
    The layer owns its buffers: a result is overwritten by the next call. On a CPU, for tests, its experts run as a
    program that g++ makes of their kernel, and its router in Triton's interpreter.
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
        mask, mean = self.bank.widths, pairs / self._slots
        self._up_tiling = self.up_tiling or choose(mask, mean, *shape.up, self._slots, may_split=False)
        self._down_tiling = self.down_tiling or choose(mask, mean, *shape.down, self._slots, may_split=True)
        self._up = self._kernel(self.bank.up, self._up_tiling, down=False)
        self._down = self._kernel(self.bank.down, self._down_tiling, down=True)
        self._assembly = device.type == "cuda"
        self.up_slots = torch.zeros(self._slots, 3, dtype=torch.int64, device=device)
        self.down_slots = torch.zeros_like(self.up_slots)
        self.slot_pairs = torch.full((self._slots, self.tokens), -1, dtype=torch.int32, device=device)
        self._arrived = torch.zeros(
            tiles(shape.d_model) + 1, dtype=torch.int32, device=device
        )  # the last is the router's
        self._logits = torch.empty(-(-shape.d_model // ROUTER_SHARE), self.tokens, shape.experts, device=device)
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
        routing.route[(len(self._logits),)](
            x,
            self.router,
            self._logits,
            self._arrived[-1:],
            self.bank.table,
            self.up_slots,
            self.down_slots,
            self.slot_pairs,
            self.weight,
            self.tokens,
            self.bank.shape.experts,
            self._slots,
            self.bank.shape.d_model,
            TOP_K=self.top_k,
            TOKENS=padded(self.tokens),
            EXPERTS=padded(self.bank.shape.experts, 16),
            SHARE=ROUTER_SHARE,
            RENORMALISE=self.renormalise,
            ASSEMBLY=self._assembly,
            num_warps=4,
            launch_pdl=self._assembly,
        )

    def up(self, x: Tensor) -> None:
        """Hidden activations of every pair."""
        store = self.bank.up
        grid = (-(-tiles(store.rows) // self._up_tiling.each), self._slots, 1)
        self._up(self._arguments(store, self.up_slots, x, self.hidden), grid)

    def down(self) -> None:
        """Weighted sums over each token's experts."""
        store = self.bank.down
        grid = (-(-tiles(store.rows) // self._down_tiling.each), self._slots, self._down_tiling.splits)
        self._down(self._arguments(store, self.down_slots, self.hidden, self.y), grid)

    def _arguments(self, store: Store, slots: Tensor, inputs: Tensor, outputs: Tensor) -> Arguments:
        tensors = (store.words, store.scales, slots, self.slot_pairs, inputs, outputs)
        scratch = (self._partial, self._arrived, self.weight)
        pointers = [tensor.data_ptr() for tensor in (*tensors, *scratch)]
        return Arguments(*pointers, self.tokens, store.rows, store.depth)

    def _kernel(self, store: Store, tiling: Tiling, down: bool) -> Launch:
        constants = {
            "WIDTHS": self.bank.widths,
            "GROUP": store.group,
            "WARPS": tiling.warps,
            "TILES": tiling.token_tiles,
            "TOP_K": self.top_k,
            "SPLITS": tiling.splits,
            "DOWN": int(down),
            "GATED": int(self.bank.shape.swiglu and not down),
            "ONE": int(self.tokens == 1),
            "WHOLE": int(store.depth % 128 == 0),
            "RING": tiling.ring,
            "BLOCKS": tiling.blocks,
        }
        return kernel(self.bank.device, constants)
