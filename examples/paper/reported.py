"""The paper's own numbers: arXiv 2403.02799, Tables 1 to 6 and 8; Domain-Ratios in percent.

`appendix_a.csv` has the scores of single tasks, of Appendix A.
"""

from __future__ import annotations

DOMAINS = ("math", "finance", "law")

PRUNED: dict[str, dict[str, float]] = {
    "math": {
        "magnitude_10": 96.46,
        "owl_10": 96.69,
        "dare_10": 96.64,
        "magnitude_80": 80.12,
        "owl_80": 77.11,
        "dare_80": 87.41,
        "dppa_80": 97.08,
        "magnitude_90": 53.41,
        "owl_90": 54.09,
        "dp_90": 54.97,
        "dare_90": 73.44,
        "dare_dpa_90": 83.63,
        "dppa_90": 86.85,
    },
    "finance": {
        "magnitude_10": 90.81,
        "owl_10": 89.12,
        "dare_10": 91.04,
        "magnitude_80": 71.04,
        "owl_80": 74.92,
        "dare_80": 84.01,
        "dppa_80": 96.65,
        "magnitude_90": 54.71,
        "owl_90": 56.74,
        "dp_90": 62.06,
        "dare_90": 82.90,
        "dare_dpa_90": 85.08,
        "dppa_90": 92.11,
    },
    "law": {
        "magnitude_10": 95.74,
        "owl_10": 110.74,
        "dare_10": 116.02,
        "magnitude_80": 113.98,
        "owl_80": 124.97,
        "dare_80": 79.93,
        "dppa_80": 116.02,
        "magnitude_90": 84.35,
        "owl_90": 121.42,
        "dp_90": 110.55,
        "dare_90": 69.33,
        "dare_dpa_90": 120.89,
        "dppa_90": 110.55,
    },
}
"""Domain -> method and pruning rate -> Domain-Ratio of one pruned model (Tables 1, 2 and 3)."""

MERGED: dict[tuple[str, ...], dict[str, dict[str, float]]] = {
    ("math", "finance", "law"): {
        "dare_90": {"math": 7.89, "finance": 51.48, "law": 53.86},
        "dppa_90": {"math": 89.95, "finance": 85.24, "law": 122.08},
        "dare_80": {"math": 32.61, "finance": 74.49, "law": 78.11},
        "dppa_80": {"math": 91.28, "finance": 95.20, "law": 146.23},
    },
    ("math", "finance"): {
        "dare_90": {"math": 21.10, "finance": 64.88},
        "dppa_90": {"math": 89.25, "finance": 79.40},
        "dare_80": {"math": 58.43, "finance": 77.16},
        "dppa_80": {"math": 92.75, "finance": 95.45},
    },
}
"""Domains merged -> method and pruning rate -> Domain-Ratios (Tables 5 and 6)."""

OFFSETS: dict[str, tuple[float, ...]] = {
    "math": (
        *(-0.0173, -0.0011, -0.0007, -0.0004, -0.0002, 0.0),
        *(0.0002, 0.0004, 0.0007, 0.0011, 0.0201),
    ),
    "finance": (
        *(-0.0261, -0.0016, -0.0010, -0.0006, -0.0003, 0.0),
        *(0.0003, 0.0006, 0.0010, 0.0016, 0.0201),
    ),
    "law": (
        *(-0.0218, -0.0015, -0.0010, -0.0006, -0.0003, 0.0),
        *(0.0003, 0.0006, 0.0010, 0.0015, 0.0202),
    ),
}
"""Domain -> least delta, deciles, largest delta (Table 8; Table 4 is a part of it)."""
