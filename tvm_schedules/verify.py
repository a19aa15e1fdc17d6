"""Built kernels against PyTorch's integers, where this machine can run them."""

from pathlib import Path

import numpy as np

from wattbit.arith import load_vectors
from wattbit.errors import WattbitError
from wattbit.plan import ExpertId
from wattbit.tvm_schedules.boardside import Kernels


def verify(folder: Path, vectors: Path) -> int:
    """Run the vectors of `export`/vectors.npz on the kernels in `folder`, built for this machine's core; their number.

    Raises WattbitError naming the first expert whose outputs differ in any bit.
    """
    kernels = Kernels(folder)
    layer, expert, x, y = load_vectors(vectors).values()
    for index in sorted(set(zip(layer.tolist(), expert.tolist(), strict=True))):
        rows = (layer == index[0]) & (expert == index[1])
        if not np.array_equal(kernels.forward(ExpertId(*index), x[rows]), y[rows]):
            raise WattbitError(
                f"{ExpertId(*index)}: the kernels in {folder} differ from PyTorch's integers; this is a bug"
            )
    return len(x)
