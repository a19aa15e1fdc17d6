"""Where a benchmark keeps each cell that it has done: in a file named by all that the cell depends on."""

from pathlib import Path
from typing import Any

from wattbit.files import digest_json, sha256_file
from wattbit.run import code_digest


def cell(root: Path, source: str, given: Any, *parts: str) -> Path:
    """ROOT/NAME/DIGEST.json for a cell of the benchmark NAME, whose file is `source`.

    given: its settings and inputs, as JSON. parts: the package's folders whose code makes it. The digest covers these
    and the benchmark itself: a cell that other code or other statistics made is never taken for this one.
    """
    own = Path(source)
    made_by = [sha256_file(own), *(code_digest(part) for part in parts)]
    return root / own.stem / f"{digest_json([given, made_by])}.json"
