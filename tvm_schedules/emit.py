"""Emits kernels as object files; run as a program: `python -m wattbit.tvm_schedules.emit FOLDER < request.json`.

It is a process of its own because TVM and torch each load an LLVM, and TVM imports torch wherever it finds it.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes TVM go without: it saves 2 s and 200 MB

import tvm
from tvm.target import Target

from wattbit.tvm_schedules.cores import Tiling, find_core
from wattbit.tvm_schedules.kernel import gemm


def main() -> None:
    """Write FOLDER/NAME.o for each kernel of {"core", "tilings", "kernels": [{name, weight_bits, ...}]} on stdin."""
    request = json.load(sys.stdin)
    tilings = tuple((bits, Tiling(**tiling)) for bits, tiling in request["tilings"])
    core = replace(find_core(request["core"]), tilings=tilings)
    for kernel in request["kernels"]:
        module = tvm.IRModule({kernel["name"]: gemm(core=core, **kernel)})
        library = tvm.tirx.build(module, target=Target(core.llvm_target))
        library.write_to_file(str(Path(sys.argv[1]) / f"{kernel['name']}.o"))


if __name__ == "__main__":
    main()
