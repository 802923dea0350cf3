"""Recipes of slices."""

from pathlib import Path
from typing import Any


def sliced(family: Path, *ranges: object, method: str = "dppa") -> dict[str, Any]:
    return {
        "merge_method": method,
        "base_model": str(family / "base"),
        "slices": [
            {
                "sources": [
                    {
                        "model": str(family / name),
                        "layer_range": each,
                        "parameters": {"weight": 1},
                    }
                    for name in ("base", "math")
                ]
            }
            for each in ranges
        ],
    }
