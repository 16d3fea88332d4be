"""Clusters of unit vectors, and the semantic duplicates inside a cluster: by hand, against brute force, refusals."""

import numpy as np
import pytest

from keras_clip.similarity import clusters

pytestmark = pytest.mark.backend_free


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_clusters_far_apart_are_found(rng):
    centers = unit(rng.normal(size=(4, 16)))
    labels = np.concatenate([np.arange(4), rng.integers(0, 4, 200)])
    vectors = unit(centers[labels] + 0.05 * rng.normal(size=(204, 16)))
    found = clusters.spherical_kmeans(vectors, 4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    expected = unit(np.stack([vectors[labels == k].sum(axis=0) for k in range(4)]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_empty_cluster_gets_the_farthest_vector():
    vectors = unit(np.array([[1, 0.01], [1, 0.01], [1, 0.0], [0, 1.0]]))
    # The first two are equal, so the second centroid has no vector at first.
    found = clusters.spherical_kmeans(vectors, 2)
    np.testing.assert_allclose(found[1], [0, 1], atol=1e-6)


def test_no_iteration_returns_the_first_vectors(rng):
    vectors = unit(rng.normal(size=(9, 3))).astype(np.float32)
    np.testing.assert_array_equal(clusters.spherical_kmeans(vectors, 4, iterations=0), vectors[:4])


@pytest.mark.parametrize("number", [0, 4])
def test_impossible_numbers_of_clusters(number):
    with pytest.raises(ValueError, match="Received: clusters="):
        clusters.spherical_kmeans(np.eye(3), number)


def published(vectors, cosines, threshold, ties, groups=None):
    """The paper's algorithm on the whole matrix; the row of the most similar one before, or -1."""
    order = np.lexsort([ties, cosines])
    similarity = np.triu(vectors[order] @ vectors[order].T, 1) + np.tril(np.full((len(order),) * 2, -2.0))
    if groups is not None:
        similarity[groups[order][:, None] != groups[order][None]] = -2
    by = np.where(similarity.max(axis=0) > threshold, order[similarity.argmax(axis=0)], -1)
    result = np.empty_like(by)
    result[order] = by
    return result


@pytest.mark.parametrize("block", [3, 2048])
@pytest.mark.parametrize("has_groups", [False, True])
def test_semantic_duplicates_as_published(monkeypatch, rng, block, has_groups):
    monkeypatch.setattr(clusters, "_BLOCK", block)
    base = unit(rng.normal(size=(20, 8)))
    vectors = unit(base[rng.integers(0, 20, 70)] + 0.1 * rng.normal(size=(70, 8))).astype(np.float32)
    cosines = (vectors @ unit(vectors.sum(axis=0))).round(2)
    ties = rng.permutation(70).astype(np.uint64)
    groups = rng.integers(0, 2, 70) if has_groups else None
    found = clusters.semantic_duplicates(vectors, cosines, 0.9, ties, groups)
    assert 5 < (found >= 0).sum() < 65
    np.testing.assert_array_equal(found, published(vectors, cosines, 0.9, ties, groups))


def test_the_farthest_from_the_centroid_stays():
    angles = np.radians([0.0, 10, 20, 80])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cosines = np.cos(angles - np.radians(30))
    # 80 degrees is the farthest, then 0, then 10 (removed by 0), then 20: removed by 10, though that is removed.
    found = clusters.semantic_duplicates(vectors, cosines, np.cos(np.radians(15)), np.arange(4, dtype=np.uint64))
    np.testing.assert_array_equal(found, [-1, 0, 1, -1])


def test_ties_decide_between_equal_vectors():
    vectors = np.ones((3, 1), np.float32)
    found = clusters.semantic_duplicates(vectors, np.ones(3), 0.5, np.array([5, 1, 9], np.uint64))
    assert found[1] == -1 and (found[[0, 2]] >= 0).all()
