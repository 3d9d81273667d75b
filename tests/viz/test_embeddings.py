"""Embeddings: features, quality and caching. Coordinates vary by platform and are not tested."""

from __future__ import annotations

import base64
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from cnn_core.errors import UnknownNameError, UsageError
from cnn_viz.page import explorer
from cnn_viz.results import embeddings
from cnn_viz.results.embeddings import (
    METHODS,
    Embedding,
    evenly_spaced,
    neighbour_count,
    neighbours_of,
    place_features,
    quality,
)
from cnn_viz.results.inputs import ViewInputs
from cnn_viz.views.embedding import COLOURS, embedding


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images[:400], dtype=torch.float32), torch.tensor(labels[:400])


@pytest.mark.parametrize(
    ("method", "trusted", "named"), [("PCA", 0.80, 0.5), ("t-SNE", 0.97, 0.9)]
)
def test_methods_keep_neighbours(digits, method, trusted, named):
    found = place_features(*digits, method)
    assert found.xy.shape == (400, 2)
    assert found.quality["trustworthiness"] > trusted
    assert found.quality["knn"] > named
    shuffled = place_features(digits[0], digits[1][torch.randperm(400)], method)
    assert shuffled.quality["knn"] < 0.3


@pytest.mark.slow
def test_umap_keeps_neighbours(digits):
    found = place_features(*digits, "UMAP")
    assert found.quality["trustworthiness"] > 0.95
    assert found.quality["knn"] > 0.9


def test_without_umap_the_error_says_what_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UsageError) as caught:
        place_features(*digits, "UMAP")
    assert "cnn-viz[umap]" in caught.value.hint


@pytest.mark.parametrize(("count", "near"), [(400, 10), (21, 10), (20, 9), (6, 2), (4, 1)])
def test_neighbours_are_fewer_than_half_of_the_images(count, near):
    assert neighbour_count(count) == near


def test_the_view_says_when_a_colour_is_several_classes(run):
    view_inputs = ViewInputs(run, device="cpu")
    few = embedding(run, view_inputs.weights, view_inputs.embedded).get_supxlabel()
    assert "are the 10 nearest neighbours in the plot" in few
    assert "colours for" not in few
    many = replace(view_inputs.weights, classes=tuple(map(str, range(30))))
    # Only classes with images need a colour.
    assert "colours for" not in embedding(run, many, view_inputs.embedded).get_supxlabel()
    labels = torch.arange(len(view_inputs.embedded.labels)) % 30
    spread = replace(view_inputs.embedded, labels=labels)
    said = embedding(run, many, spread).get_supxlabel()
    assert f"{len(COLOURS)} colours for 30 classes" in said


def test_quality_equals_a_plain_loop(digits):
    x, xy = np.asarray(digits[0][:60]), np.asarray(digits[0][:60, 20:22])
    labels = np.asarray(digits[1][:60])
    far = ((xy[:, None] - xy[None]) ** 2).sum(2).astype(float)
    np.fill_diagonal(far, np.inf)
    near = np.sort(far, 1)[:, :10]
    ours = neighbours_of(xy, 10)
    np.testing.assert_allclose(np.take_along_axis(far, ours, 1), near)
    hits = [np.bincount(labels[row]).argmax() == k for row, k in zip(ours, labels, strict=True)]
    found = quality(x, xy, labels)
    assert found["knn"] == pytest.approx(np.mean(hits))
    assert -1 < found["silhouette"] < 1
    assert set(quality(x, xy)) == {"trustworthiness"}
    assert set(quality(x, xy, np.zeros(60))) == {"trustworthiness"}
    assert quality(x, x[:, :2] * 0 + x[:, 20:22])["trustworthiness"] <= 1


def test_too_few_images_are_refused():
    with pytest.raises(UsageError, match="3 images: expected at least 4"):
        place_features(torch.rand(3, 3), torch.zeros(3), "PCA")


@pytest.mark.parametrize("method", ["PCA", "t-SNE"])
def test_four_images_are_enough(method):
    found = place_features(torch.rand(4, 5), torch.arange(4), method)
    assert found.xy.shape == (4, 2)
    assert set(found.quality) == {"trustworthiness"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("features", "says"),
    [
        (torch.zeros(20, 4), "20 images have identical features"),
        (torch.full((20, 4), 0.1) * (1 + 1e-7 * torch.rand(20, 4)), "identical features"),
        (torch.full((20, 4), torch.nan), "not finite"),
    ],
)
def test_a_dead_networks_features_are_refused(method, features, says):
    """On such features t-SNE crashes the process with a segmentation fault."""
    with pytest.raises(UsageError, match=says):
        place_features(features, torch.arange(20) % 2, method)


@pytest.mark.parametrize("method", ["PCA", "t-SNE"])
def test_one_feature_of_any_size_is_enough(method):
    for size in (1e-30, 1.0, 1e30):
        found = place_features(size * torch.rand(20, 1), torch.arange(20) % 2, method)
        assert np.isfinite(found.xy).all()
        assert found.xy[:, 0].std() > 0


def test_indices_are_evenly_spaced():
    assert evenly_spaced(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(9, 5).tolist() == [0, 2, 4, 6, 8]
    assert len(evenly_spaced(100_000, 1_000).unique()) == 1_000


def test_places_are_kept_by_weights_and_broken_files_made_again(digits, tmp_path, monkeypatch):
    calls = []

    def counted(x):
        calls.append(len(x))
        return x[:, 20:22]

    monkeypatch.setitem(METHODS, "PCA", (counted, 300))

    def fresh(key="a"):
        return Embedding(
            features=digits[0],
            indices=torch.arange(400),
            labels=digits[1],
            description="",
            folder=tmp_path,
            key=key,
        )

    first = fresh().placement("PCA")
    assert first.indices.tolist() == evenly_spaced(400, 300).tolist()
    again = fresh().placement("PCA")
    assert calls == [300]
    assert np.array_equal(first.xy, again.xy)
    assert first.quality == again.quality
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for broken in (b"", whole[:100], whole[:-40], b"PK" + whole[2:50]):
        file.write_bytes(broken)
        assert np.array_equal(fresh().placement("PCA").xy, first.xy)
    assert calls == [300] * 5
    fresh("other weights").placement("PCA")
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(UnknownNameError, match="unknown method 'pca', did you mean 'PCA'"):
        fresh().placement("pca")


def test_a_run_is_embedded_by_what_goes_into_its_last_stage(run, cnnzoo, monkeypatch):
    embedded = ViewInputs(run, device="cpu").embedded
    assert embedded.features.shape == (359, 84)  # F6
    assert embedded.labels.unique().tolist() == list(range(10))
    assert embedded.methods_to_draw() == ["PCA", "t-SNE"]
    done = cnnzoo("embed", run.path, "--method", "pca", "--device", "cpu")
    assert done.code == 0, done.err
    assert done.out.startswith("PCA: trustworthiness 0.")
    monkeypatch.setitem(METHODS, "UMAP", (embeddings._pca, 50))
    embedded.placement("UMAP")
    assert ViewInputs(run, device="cpu").embedded.methods_to_draw() == ["PCA", "t-SNE", "UMAP"]


@pytest.mark.parametrize("count", [4, 5, 7])
def test_few_images_have_an_embedding_on_the_page(count, tmp_path):
    torch.manual_seed(0)
    embedded = Embedding(
        features=torch.randn(count, 3),
        indices=torch.arange(count),
        labels=torch.arange(count) % 2,
        description="few",
        folder=tmp_path,
        key="few",
    )
    found = explorer._embedding(embedded)
    assert found is not None
    assert found["around"] == min(5, count - 1)
    nearest = np.frombuffer(base64.b64decode(found["neighbours"]), "<u2").reshape(count, -1)
    assert nearest.shape[1] == found["around"]
    assert nearest.max() == count - 1
