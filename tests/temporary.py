"""What tests and the programs that they start leave in a temporary folder."""

from pathlib import Path


def left_in(folder: Path) -> list[str]:
    """What is in it, less the empty folder that PyTorch makes there when it is imported."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("torchinductor_") or _full(path))


def _full(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
