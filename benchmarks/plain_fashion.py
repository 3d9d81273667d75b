"""A plain training script for Fashion-MNIST, after PyTorch's MNIST example.

    python benchmarks/plain_fashion.py DIR [--until PERCENT] [--epochs N] [--seed N]

Network, hyperparameters and data loading are those of the example: two convolutions, dropout,
Adadelta with a learning rate of 1 that falls by a factor of 0.7 per epoch, batches of 64 from
torchvision's dataset in DIR. After every epoch the script evaluates the test split and prints a
line of JSON: the time of day minus all time spent on evaluation, the epoch, and the accuracy. It
ends early when the accuracy reaches PERCENT.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

MEAN, STD = 0.2860, 0.3530


def network() -> nn.Sequential:
    """Return the network: N 1 28 28 -> log-probabilities, N 10."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25)),
        *(nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(128, 10), nn.LogSoftmax(dim=1)),
    )


def loader(folder: Path, batch: int, *, train: bool) -> DataLoader[tuple[Tensor, Tensor]]:
    """Return a loader of the normalised images of a split."""
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    split = datasets.FashionMNIST(folder, train=train, transform=steps)
    return DataLoader(split, batch, shuffle=train)


def epoch_of(model: nn.Module, optimizer: torch.optim.Optimizer, batches: DataLoader) -> None:
    """Train for one epoch."""
    model.train()
    for images, targets in batches:
        optimizer.zero_grad()
        F.nll_loss(model(images), targets).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: nn.Module, batches: DataLoader) -> float:
    """Return the accuracy on a split, as a fraction."""
    model.eval()
    hits = sum((model(images).argmax(1) == targets).sum().item() for images, targets in batches)
    return hits / len(batches.dataset)


def main() -> None:
    """Train, and print the accuracy after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", type=float, default=100.0)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.manual_seed(chosen.seed)
    training, test = (loader(chosen.folder, n, train=n == 64) for n in (64, 1000))
    model = network()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    measuring = 0.0
    for epoch in range(1, chosen.epochs + 1):
        epoch_of(model, optimizer, training)
        schedule.step()
        now = time.time()
        reached = accuracy(model, test)
        print(json.dumps([now - measuring, epoch, reached]), flush=True)
        measuring += time.time() - now
        if 100 * reached >= chosen.until:
            break


if __name__ == "__main__":
    main()
