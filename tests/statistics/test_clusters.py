"""Which tiles count as how many, by hand; ``test_intervals.py`` checks the variances against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from histolight.statistics.clusters import (
    clustered_variance,
    find_clusters,
    lack_of_clusters,
    scarcer_clusters,
    sums_by_cluster,
)


@pytest.mark.parametrize("label", [0, 1])
def test_the_class_on_fewer_slides_decides(label: int) -> None:
    # Four slides of one tile each for one class; slides of 3 and 1 tiles for the other: 4^2 / (3^2 + 1^2) = 1.6.
    labels = np.array([label] * 4 + [1 - label] * 4, bool)
    clusters = find_clusters(list("abcd" + "aaab"), 8)
    assert scarcer_clusters(labels, clusters) == pytest.approx(1.6)
    assert "tiles lie so unevenly that they count as 1.6 slides" in lack_of_clusters(labels, clusters)


def test_what_is_just_too_little_is_not_rounded_to_enough() -> None:
    clusters = find_clusters(["a"] * 23 + ["b"] * 18 + ["c"] * 10 + ["d"] * 10, 61)
    assert "that they count as 1.97 slides; 2 are needed" in lack_of_clusters(np.arange(61) < 41, clusters)


def test_two_equal_slides_of_a_class_are_enough() -> None:
    clusters = find_clusters(list("aabb"), 4)
    assert lack_of_clusters(np.array([True, False, True, False]), clusters) == ""


def test_tiles_without_a_slide_are_numbered_behind_the_slides() -> None:
    clusters = find_clusters(["b", None, "a", math.nan, "b"], 5)
    assert (clusters.codes.tolist(), clusters.slides, clusters.missing) == ([0, 2, 1, 3, 0], 2, 2)
    assert clusters.note == "2 tiles without a slide count as slides of their own"
    for none in (None, [None] * 5):
        alone = find_clusters(none, 5)
        assert (alone.codes.tolist(), alone.slides, alone.missing, alone.note) == ([0, 1, 2, 3, 4], 0, 0, "")


def test_the_variance_of_a_sum_is_that_of_its_clusters_by_hand() -> None:
    # Clusters of 3 and 1 tiles add 0.5 and -0.5: 1.6 / 0.6 times 0.5.
    influence, codes = np.array([0.1, 0.1, 0.3, -0.5]), np.array([0, 0, 0, 1])
    assert clustered_variance(influence, codes) == pytest.approx(1.6 / 0.6 * 0.5)


def test_columns_are_added_up_by_cluster_and_clusters_without_any_are_zero() -> None:
    values = np.array([[1.0, 2.0, 4.0], [10.0, 20.0, 40.0]])
    assert sums_by_cluster(values, np.array([2, 0, 2]), 4).tolist() == [[2, 0, 5, 0], [20, 0, 50, 0]]
