"""Metrics against scikit-learn and torchmetrics, batch by batch and with ties."""

from __future__ import annotations

import pytest
import torch

from cnn_core.errors import PluginError, UsageError
from cnn_core.tasks import metrics_of
from cnn_core.tasks.classification import Top1, TopK
from cnn_core.training.epoch_metrics import EpochMetrics


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
    assert set(metrics_of("classification", 10, 3)) == {"top1", "top3", "classes", "auc"}


@pytest.mark.parametrize(("classes", "name"), [(10, "top5"), (5, "top5"), (2, "top2")])
def test_k_is_5_unless_there_are_fewer_classes(classes, name):
    assert name in metrics_of("classification", classes)


def test_means_weigh_batches_by_their_size():
    running = EpochMetrics("classification", 10, 0)
    running.add(1.0, torch.randn(30, 10), torch.zeros(30, dtype=torch.int64))
    running.add(4.0, torch.randn(10, 10), torch.zeros(10, dtype=torch.int64))
    assert running.compute("train/")["train/loss"] == pytest.approx(1.75)


def test_metrics_that_wait_are_those_of_every_batch_and_go_on_from_their_sums():
    torch.manual_seed(0)
    batches = [(torch.randn(n, 10), torch.randint(0, 10, (n,))) for n in (8, 3, 9000, 1, 8)]
    whole, first = EpochMetrics("classification", 10, 3), EpochMetrics("classification", 10, 3)
    for number, (logits, targets) in enumerate(batches):
        whole.add(float(number), logits, targets)
    for number in (0, 1):
        first.add(float(number), *batches[number])
    second = EpochMetrics("classification", 10, 3)
    second.load({name: tensor.clone() for name, tensor in first.sums().items()})
    for number in (2, 3, 4):
        second.add(float(number), *batches[number])
    assert second.compute() == whole.compute()
    logits, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert whole.compute()["top1"] == float((logits.argmax(1) == targets).double().mean())


def test_a_metric_without_sums_is_refused_by_name(monkeypatch):
    monkeypatch.delattr(Top1, "sums", raising=False)
    monkeypatch.setattr(Top1, "__init__", lambda self, num_classes: None)
    with pytest.raises(PluginError, match=r"metric 'top1' \(cnn-core/core\) has no tensor `sums`"):
        metrics_of("classification", 10)
