"""Spatter: its image operations against definitions, brute force and hand-made cases."""

from __future__ import annotations

import heapq

import numpy as np
import torch

from advsphere.corruption import corrupt, weather
from tests.corruption.pictures import pictures


def shortest_ways(edge: np.ndarray) -> np.ndarray:
    """Dijkstra on the pixels, with the steps of OpenCV's 5x5 distance."""
    steps = {(i, j): 1.0 for i, j in ((0, 1), (1, 0))} | {(1, 1): 1.4, (1, 2): 2.1969, (2, 1): 2.1969}
    steps |= {(a * i, b * j): length for (i, j), length in steps.items() for a in (-1, 1) for b in (-1, 1)}
    far = np.full(edge.shape, 20.0)
    heap = [(0.0, i, j) for i, j in zip(*edge.nonzero(), strict=True)]
    while heap:
        length, i, j = heapq.heappop(heap)
        if length >= far[i, j]:
            continue
        far[i, j] = length
        for (di, dj), step in steps.items():
            a, b = i + di, j + dj
            if 0 <= a < edge.shape[0] and 0 <= b < edge.shape[1] and length + step < far[a, b]:
                heapq.heappush(heap, (length + step, a, b))
    return far


def test_distances_are_lengths_of_shortest_ways() -> None:
    rng = np.random.default_rng(0)
    edge = rng.random((4, 40, 40)) < np.array([0, 0.001, 0.01, 0.2])[:, None, None]
    ours = weather.distances(torch.from_numpy(edge)[None])[0].numpy()
    assert np.abs(ours - np.stack([shortest_ways(e) for e in edge])).max() < 1e-4
    assert (ours[0] == 20).all()


def test_an_edge_is_where_a_step_is_and_weak_ones_need_a_strong_one() -> None:
    grey = torch.zeros(1, 3, 20, 20)
    grey[0, 0, :, 10:] = 200  # strong: Sobel gives 800
    grey[0, 1, :, 10:] = 30  # weak: 120
    grey[0, 2, :10, 10:], grey[0, 2, 10:, 10:] = 200, 30  # weak below, strong above
    found = weather.edges(grey)[0]
    assert found[0].any(1).all() and found[0].sum(1).max() == 1 and not found[0][:, :9].any()
    assert not found[1].any()
    assert found[2][:, 9:11].any(1).sum() >= 18


def test_equalisation_spreads_the_levels() -> None:
    grey = torch.tensor([[5.0, 5, 5, 7], [7, 9, 9, 9]]).view(1, 1, 2, 4)
    # Counts 3, 2, 3: the first level becomes 0, then 2 / 5 and 5 / 5 of 255.
    assert weather.equalised(grey).flatten().tolist() == [0, 0, 0, 102, 102, 255, 255, 255]
    flat = torch.full((1, 2, 3, 3), 4.0)
    assert weather.equalised(flat).unique().tolist() == [4]


def test_water_brightens_and_mud_covers() -> None:
    x = pictures(4, 64)
    water, mud = corrupt(x, "spatter", 3), corrupt(x, "spatter", 5)
    assert (water >= x).all() and (water > x).any()
    covered = (mud != x).any(1)
    assert 0.005 < float(covered.float().mean()) < 0.5
    drops = mud.permute(0, 2, 3, 1)[covered].float()
    original = x.permute(0, 2, 3, 1)[covered].float()
    brown = torch.tensor([63.0, 42.0, 20.0])
    assert float((drops - brown).abs().mean()) < 0.3 * float((original - brown).abs().mean())
