"""Metrics against scikit-learn and torchmetrics, batch by batch and with ties."""

from __future__ import annotations

import pytest
import torch

from cnn_core.errors import UsageError
from cnn_core.tasks import metrics_of
from cnn_core.tasks.classification import Mean, Top1, TopK


def streamed(metric, logits, targets, sizes):
    for x, y in zip(logits.split(sizes), targets.split(sizes), strict=True):
        metric.update(x, y)
    return metric.compute()


@pytest.mark.parametrize("classes", [2, 3, 10, 37])
@pytest.mark.parametrize("seed", range(5))
def test_top_k_is_scikit_learns_for_every_k(classes, seed):
    oracle = pytest.importorskip("sklearn.metrics").top_k_accuracy_score
    torch.manual_seed(seed)
    logits = torch.randn(200, classes, dtype=torch.float64)
    targets = torch.randint(0, classes, (200,))
    targets[:classes] = torch.arange(classes)
    for k in range(1, classes + 1):
        found = streamed(TopK(k), logits, targets, 64)
        if k == classes:
            assert found == 1
        else:
            scores = logits if classes > 2 else logits[:, 1] - logits[:, 0]
            kinds = range(classes)
            assert found == pytest.approx(oracle(targets, scores, k=k, labels=kinds), abs=1e-12)


def test_top_1_is_torchmetrics():
    oracle = pytest.importorskip("torchmetrics.functional").accuracy
    torch.manual_seed(0)
    logits, targets = torch.randn(333, 10), torch.randint(0, 10, (333,))
    expected = oracle(logits, targets, task="multiclass", num_classes=10, average="micro")
    assert streamed(Top1(10), logits, targets, 50) == pytest.approx(expected.item(), abs=1e-7)


def test_a_network_that_says_the_same_of_every_class_is_at_chance():
    logits, targets = torch.zeros(100, 10), torch.arange(10).repeat(10)
    assert streamed(TopK(1), logits, targets, 30) == 0.1
    assert streamed(TopK(3), logits, targets, 30) == 0.3


def test_a_network_that_says_nan_is_never_right():
    logits, targets = torch.full((10, 5), torch.nan), torch.zeros(10, dtype=torch.long)
    assert streamed(TopK(3), logits, targets, 5) == 0


def test_k_beyond_the_classes_is_refused_with_both_numbers():
    with pytest.raises(UsageError, match="topk = 11, but there are 10 classes"):
        metrics_of("classification", 10, 11)
    assert set(metrics_of("classification", 10, 3)) == {"top1", "top3"}


@pytest.mark.parametrize(("classes", "name"), [(10, "top5"), (5, "top5"), (2, "top2")])
def test_k_is_5_unless_there_are_fewer_classes(classes, name):
    assert name in metrics_of("classification", classes)


def test_means_weigh_batches_by_their_size():
    mean = Mean()
    mean.add(torch.tensor(1.0), 30)
    mean.add(torch.tensor(4.0), 10)
    assert mean.compute() == pytest.approx(1.75)
