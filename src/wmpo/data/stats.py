"""Normalisation statistics in LeRobot's format: min, max, mean, std, count and five quantiles per dimension."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Stats = dict[str, np.ndarray]
QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

NAMES = ("min", "max", "mean", "std", *QUANTILES, "count")


def vector_stats(rows: np.ndarray) -> Stats:
    """Exact statistics of (rows, D), each (D,); std is the population's."""
    rows = rows.astype(np.float64)
    stats = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    stats.update(zip(QUANTILES, quantiles, strict=True))
    stats["count"] = np.array([len(rows)])
    return stats


def image_stats(images: np.ndarray) -> Stats:
    """Exact statistics of (frames, H, W, 3) uint8 per channel, in [0, 1], each (3, 1, 1); count is of frames."""
    levels = np.arange(256)
    stats: Stats = {}
    for channel in range(3):
        histogram = np.zeros(256, np.int64)
        for image in images:  # one by one: counting takes eight bytes for each pixel
            histogram += np.bincount(image[..., channel].reshape(-1), minlength=256)
        total = histogram.sum()
        seen = levels[histogram > 0]
        mean = (histogram * levels).sum() / total
        values = {
            "min": seen[0],
            "max": seen[-1],
            "mean": mean,
            "std": np.sqrt((histogram * (levels - mean) ** 2).sum() / total),
        }
        cumulative = np.cumsum(histogram)
        for name, share in QUANTILES.items():
            values[name] = np.searchsorted(cumulative, share * total)
        for name, value in values.items():
            stats.setdefault(name, np.zeros((3, 1, 1)))[channel] = value / 255
    stats["count"] = np.array([len(images)])
    return stats


def merge_stats(parts: Sequence[Stats]) -> Stats:
    """Statistics of the union: exact but for the quantiles, which are averaged by count as LeRobot does."""
    counts = np.array([part["count"][0] for part in parts], dtype=np.float64)
    weights = counts / counts.sum()

    def average(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.einsum("p,p...->...", weights, np.stack(values))

    mean = average([part["mean"] for part in parts])
    variance = average([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    merged = {name: average([part[name] for part in parts]) for name in QUANTILES}
    merged["min"] = np.min([part["min"] for part in parts], axis=0)
    merged["max"] = np.max([part["max"] for part in parts], axis=0)
    merged["mean"] = mean
    merged["std"] = np.sqrt(variance)
    merged["count"] = np.array([int(counts.sum())])
    return merged
