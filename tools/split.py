"""Choosing whole groups for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def choose_groups(records: Sequence[Mapping[str, Any]], share: float, classes: int) -> set[str]:
    """Whole groups that hold about `share` of the images and of each class's boxes; always the same ones.

    Each class is in both splits if the groups allow it. Local search: add, remove or swap groups while that brings
    the shares nearer.

    >>> one = {"group": "a", "boxes": [(1, None)]}
    >>> choose_groups([one, one, {**one, "group": "b"}, {**one, "group": "c"}], 0.25, 1)
    {'b'}
    """
    groups = sorted({record["group"] for record in records})
    place = {group: k for k, group in enumerate(groups)}
    counts = np.zeros((len(groups), classes + 2))  # images, images without a box, boxes of each class
    for record in records:
        row = counts[place[record["group"]]]
        row[0] += 1
        row[1] += not record["boxes"]
        for kind, _ in record["boxes"]:
            row[1 + kind] += 1
    counts = counts[:, counts.sum(axis=0) > 0]
    counts /= counts.sum(axis=0)
    chosen = np.zeros(len(groups), bool)
    cost = _split_cost(chosen[None] @ counts, share)[0]
    while True:
        options = _neighbours(chosen)
        costs = _split_cost(options @ counts, share)
        best = int(np.argmin(costs))
        if costs[best] >= cost - 1e-9:
            return {group for group, taken in zip(groups, chosen, strict=True) if taken}
        chosen, cost = options[best], costs[best]


def _split_cost(shares: np.ndarray, share: float) -> np.ndarray:
    """How bad splits are, given the shares (M, K) that validation has of K kinds of things."""
    # A kind that is missing outweighs any distance from the wanted share; most where it is missing to train on.
    unmeasured, untrained = shares < 1e-9, shares > 1 - 1e-9
    off = np.abs(shares - share)
    return 10.0 * unmeasured.sum(axis=1) + 100.0 * untrained.sum(axis=1) + off[:, 0] + off.mean(axis=1)


def _neighbours(chosen: np.ndarray) -> np.ndarray:
    """All choices (M, groups) that differ by one group, or by one swapped for another where that is few enough."""
    eye = np.eye(len(chosen), dtype=bool)
    single = chosen ^ eye
    inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
    if len(inside) * len(outside) > 20_000:
        return single
    swaps = chosen ^ eye[np.repeat(inside, len(outside))] ^ eye[np.tile(outside, len(inside))]
    return np.concatenate([single, swaps])
