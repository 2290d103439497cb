"""Folders that look like /proc and /sys of some machine."""

from collections.abc import Mapping
from pathlib import Path


def tree(root: Path, files: Mapping[str, str | int]) -> Path:
    """Write `files`, by path in `root`, and return `root`; written again, a file has the new text."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n", encoding="utf-8")
    return root
