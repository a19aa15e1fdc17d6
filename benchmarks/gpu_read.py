"""A Triton kernel that reads memory and does next to nothing with it: what any kernel's bytes a second end at."""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]  # Triton ships no types
def read(x, out, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]  # a Triton kernel
    """Reads SIZE words a program."""
    words = tl.load(x + tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE))
    top = tl.max(words, axis=0)
    if top == 123456789:
        tl.store(out, top)
