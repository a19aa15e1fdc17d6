"""Where a benchmark keeps each cell that it has done: in a file named by all that the cell depends on."""

import sys
from pathlib import Path
from typing import Any

from wattbit.files import digest_json, sha256_file
from wattbit.run import code_digest


def cell(root: Path, source: str, given: Any, *parts: str) -> Path:
    """ROOT/NAME/DIGEST.json for a cell of the benchmark NAME, whose file is `source`.

    given: its settings and inputs, as JSON. parts: the package's folders whose code makes it. The digest covers these,
    the benchmark and whatever it has imported from its own folder: a cell that other code, statistics or weights made
    is never taken for this one.
    """
    own = Path(source).resolve()
    loaded = {Path(file).resolve() for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))}
    beside = sorted(path for path in loaded | {own} if path.parent == own.parent)
    made_by = [[path.name, sha256_file(path)] for path in beside] + [[part, code_digest(part)] for part in parts]
    return root / own.stem / f"{digest_json([given, made_by])}.json"
