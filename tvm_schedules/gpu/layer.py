"""A whole mixture-of-experts layer on the card: router, plan, experts of mixed widths, weighted sum. Three launches."""

from dataclasses import dataclass, field

import torch
import triton
from torch import Tensor

from wattbit.errors import WattbitError
from wattbit.tvm_schedules.gpu import kernel, routing
from wattbit.tvm_schedules.gpu.bank import Bank, Store
from wattbit.tvm_schedules.gpu.packing import GpuLayout
from wattbit.tvm_schedules.gpu.tiling import Tiling, choose, padded

TOKENS_MAX = 64
ROUTER_SHARE = 256


@dataclass(eq=False)
class Layer:
    """y [T, D] of x [T, D] (bfloat16) for a fixed number of tokens T, 1..64, so that it can be one CUDA graph.

    router: [E, D] bfloat16. renormalise: whether the chosen experts' weights sum to 1 (Mixtral; not OLMoE).
    The layer owns its buffers: a result is overwritten by the next call. On a CPU it runs in Triton's interpreter.
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
        widths, tokens = self.bank.widths, self.tokens
        self._up_tiling = self.up_tiling or choose(widths, tokens, shape.up[0], self._slots, may_split=False)
        self._down_tiling = self.down_tiling or choose(widths, tokens, shape.down[0], self._slots, may_split=True)
        self._assembly = device.type == "cuda"
        self.up_slots = torch.zeros(self._slots, 3, dtype=torch.int64, device=device)
        self.down_slots = torch.zeros_like(self.up_slots)
        self.slot_pairs = torch.full((self._slots, self.tokens), -1, dtype=torch.int32, device=device)
        tiles = -(-shape.d_model // self._down_tiling.rows)
        self._arrived = torch.zeros(tiles + 1, dtype=torch.int32, device=device)  # the last is the router's
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
        store, tiling = self.bank.up, self._up_tiling
        kernel.up[triton.cdiv(store.rows, tiling.rows), self._slots](
            x,
            self.hidden,
            store.words,
            store.scales,
            self.up_slots,
            self.slot_pairs,
            self.tokens,
            store.rows,
            store.depth,
            TOP_K=self.top_k,
            SWIGLU=self.bank.shape.swiglu,
            **self._constants(store, tiling),
        )

    def down(self) -> None:
        store, tiling = self.bank.down, self._down_tiling
        kernel.down[triton.cdiv(store.rows, tiling.rows), self._slots, tiling.splits](
            self.hidden,
            self.y,
            self._partial,
            self._arrived,
            store.words,
            store.scales,
            self.down_slots,
            self.slot_pairs,
            self.weight,
            self.tokens,
            store.rows,
            store.depth,
            TOP_K=self.top_k,
            SPLITS=tiling.splits,
            **self._constants(store, tiling),
        )

    def _constants(self, store: Store, tiling: Tiling) -> dict[str, int | bool]:
        columns = min(tiling.columns, store.group) if store.group else tiling.columns
        wide = min(tiling.wide, store.group) if store.group else tiling.wide
        layouts = [GpuLayout(bits, store.depth, store.group) for bits in {bits for _, bits in store.start}]
        return {
            "WIDTHS": self.bank.widths,
            "GROUP": store.group,
            "ROWS": tiling.rows,
            "TOKENS": tiling.tokens,
            "COLUMNS": columns,
            "WIDE": wide,
            "STAGES": tiling.stages,
            "WHOLE": all(
                layout.columns % (columns if layout.bits in (2, 4) else wide) == 0
                and layout.fields * layout.columns == store.depth
                for layout in layouts
            ),
            "ASSEMBLY": self._assembly,
            "num_warps": tiling.warps,
            "launch_pdl": self._assembly,
            "maxnreg": tiling.registers,
        }
