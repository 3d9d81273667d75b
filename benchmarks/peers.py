"""The trainers to compare: a bare PyTorch loop, cnnzoo, and others, one function each.

Each function trains a `Job` for two epochs: the same network from the same weights, on the same
images, with the same SGD, and records the mean loss, top-1 and top-5 of every epoch. Trainers that
leave the step to the user get the step of the bare loop. By default, a trainer uses torch's loader
or its own, its own metrics, and its default progress bar, log and checkpoints. As far as the
trainer allows, "lean" switches all of these off and uses the bare loop's batches and fused SGD.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import synthetic
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cnn_core import create_model, train

__all__ = ["BARE", "CONTESTANTS", "EPOCHS", "FUSED", "MODULES", "Job"]

EPOCHS = 2  # the first one is a warm-up
MOMENTUM = 0.9
NAMES = ("loss", "top1", "top5")


@dataclass
class Job:
    """A training job: a task, its images as a tensor in memory, and a clock.

    `seconds` are the durations of the epochs; `totals` are the sums of loss, top-1 hits and top-5
    hits of the last epoch.
    """

    task: synthetic.Task
    images: Tensor
    targets: Tensor
    seconds: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])

    def model(self) -> nn.Module:
        """Return the network, with the initial weights of `cnn_core.train`."""
        torch.manual_seed(0)
        return create_model(
            self.task.model, num_classes=synthetic.CLASSES, in_channels=self.task.shape[0]
        )

    def sgd(self, parameters: Any, *, fused: bool | None = None) -> torch.optim.Optimizer:
        """Return torch's SGD with the settings that all trainers share."""
        return torch.optim.SGD(
            parameters, lr=self.task.lr, momentum=MOMENTUM, nesterov=True, fused=fused
        )

    def __len__(self) -> int:
        return self.task.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the bare loop, for trainers that accept any iterable."""
        for places in torch.randperm(len(self.images)).split(self.task.batch):
            yield self.images[places], self.targets[places]

    def loader(self) -> DataLoader:
        """Return a DataLoader of the images."""
        dataset = TensorDataset(self.images, self.targets)
        return DataLoader(dataset, self.task.batch, shuffle=True)

    def begin(self, *_: Any) -> None:
        """Begin an epoch: reset the totals and start the clock."""
        self.totals = [0.0, 0.0, 0.0]
        self.began = time.perf_counter()

    def end(self, *_: Any) -> None:
        """Stop the clock."""
        self.seconds.append(time.perf_counter() - self.began)

    def means(self, *means: float) -> None:
        """Set the totals from the means that a trainer's own metrics report."""
        self.totals = [mean * len(self.images) for mean in means]

    def note(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch to the totals, as the bare loop does."""
        hits = logits.detach().topk(5).indices == targets[:, None]
        self.totals[0] += loss.item() * len(targets)
        self.totals[1] += hits[:, 0].sum().item()
        self.totals[2] += hits.sum().item()


def bare(job: Job, *, fused: bool | None = None) -> None:
    """Train with a loop written by hand, the baseline of all overheads."""
    model, images, targets, batch = job.model(), job.images, job.targets, job.task.batch
    optimizer = job.sgd(model.parameters(), fused=fused)
    for _ in range(EPOCHS):
        began = time.perf_counter()
        total, top1, top5 = 0.0, 0.0, 0.0
        model.train()
        for places in torch.randperm(len(images)).split(batch):
            x, y = images[places], targets[places]
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(y)
            hits = logits.detach().topk(5).indices == y[:, None]
            top1 += hits[:, 0].sum().item()
            top5 += hits.sum().item()
        job.seconds.append(time.perf_counter() - began)
        job.totals = [total, top1, top5]


def cnnzoo(job: Job, *, shown: bool) -> None:
    """cnnzoo: `cnn_core.train`, with a checkpoint and a line of metrics.jsonl every epoch.

    No image is held out for validation, so that `seconds` in metrics.jsonl covers only steps and
    training metrics.
    """
    task = job.task
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            task.model,
            synthetic.DATA,
            epochs=EPOCHS,
            batch_size=task.batch,
            lr=task.lr,
            momentum=MOMENTUM,
            weight_decay=0.0,
            schedule="constant",
            validation=0.0,
            device="cpu",
            progress=shown,
            out=Path(folder) / "run",
        )
        history = run.history()
    job.seconds = [line["seconds"] for line in history]
    job.means(*(history[-1][f"train/{name}"] for name in NAMES))


def ignite(job: Job, *, lean: bool) -> None:
    """PyTorch Ignite: its metrics and torch's loader; lean: our update function, no metrics."""
    from ignite.engine import Engine, Events, create_supervised_trainer
    from ignite.metrics import Accuracy, Average, TopKCategoricalAccuracy

    model = job.model()
    optimizer = job.sgd(model.parameters(), fused=lean or None)
    if lean:
        engine = Engine(lambda _, batch: stepped(job, model, optimizer, *batch))
    else:
        engine = create_supervised_trainer(
            model,
            optimizer,
            F.cross_entropy,
            output_transform=lambda x, y, logits, loss: (logits.detach(), y, loss.item()),
        )
        Average(lambda output: output[2]).attach(engine, "loss")
        Accuracy(lambda output: output[:2]).attach(engine, "top1")
        TopKCategoricalAccuracy(5, lambda output: output[:2]).attach(engine, "top5")
    engine.add_event_handler(Events.EPOCH_STARTED, job.begin)
    engine.add_event_handler(Events.EPOCH_COMPLETED, job.end)
    engine.run(job if lean else job.loader(), max_epochs=EPOCHS)
    if not lean:
        job.means(*(engine.state.metrics[name] for name in NAMES))


def stepped(
    job: Job,
    model: nn.Module,
    optimizer: Any,
    images: Tensor,
    targets: Tensor,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> None:
    """Take the step of the bare loop inside the loop of a trainer."""
    logits = model(images)
    loss = F.cross_entropy(logits, targets)
    optimizer.zero_grad()
    backward(loss)
    optimizer.step()
    job.note(loss, logits, targets)


def fabric(job: Job, *, lean: bool) -> None:
    """Lightning Fabric: a loop by hand with its wrapped objects; lean: our batches."""
    from lightning_fabric import Fabric

    fabric = Fabric(accelerator="cpu", devices=1)
    model = job.model()
    optimizer = job.sgd(model.parameters(), fused=lean or None)
    model, optimizer = fabric.setup(model, optimizer)
    batches = job if lean else fabric.setup_dataloaders(job.loader())
    by_hand(job, model, optimizer, batches, fabric.backward)


def accelerate(job: Job, *, lean: bool) -> None:
    """Hugging Face Accelerate: a loop by hand with its wrapped objects; lean: our batches."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = job.model()
    optimizer = job.sgd(model.parameters(), fused=lean or None)
    model, optimizer = accelerator.prepare(model, optimizer)
    batches = job if lean else accelerator.prepare(job.loader())
    by_hand(job, model, optimizer, batches, accelerator.backward)


def by_hand(
    job: Job, model: nn.Module, optimizer: Any, batches: Any, backward: Callable[[Tensor], Any]
) -> None:
    """Run the loop that users of Fabric and Accelerate write."""
    for _ in range(EPOCHS):
        job.begin()
        model.train()
        for images, targets in batches:
            stepped(job, model, optimizer, images, targets, backward=backward)
        job.end()


def lightning(job: Job, *, how: str) -> None:
    """PyTorch Lightning: by default; lean, with everything switched off; or barebones."""
    import pytorch_lightning

    switches: dict[str, Any] = {
        "default": {},
        "lean": {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "barebones": {"barebones": True},
    }
    module = lightning_module(job, logs=how == "default")
    with tempfile.TemporaryDirectory() as folder:
        trainer = pytorch_lightning.Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            **switches[how],
        )
        trainer.fit(module, job.loader() if how == "default" else job)


def lightning_module(job: Job, *, logs: bool) -> Any:
    """Return the network as a LightningModule that logs, or calls `Job.note`."""
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = job.model()

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            images, targets = batch
            logits = self.network(images)
            loss = F.cross_entropy(logits, targets)
            if not logs:
                job.note(loss, logits, targets)
                return loss
            hits = logits.detach().topk(5).indices == targets[:, None]
            size = len(targets)
            found = {"loss": loss, "top1": hits[:, 0].sum() / size, "top5": hits.sum() / size}
            self.log_dict(found, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
            return loss

        def on_train_epoch_start(self) -> None:
            job.begin()

        def on_train_epoch_end(self) -> None:
            job.end()
            if logs:
                job.means(*(self.trainer.callback_metrics[name].item() for name in NAMES))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return job.sgd(self.parameters(), fused=None if logs else True)

    return Module()


def fastai(job: Job, *, lean: bool) -> None:
    """fastai: its recorder, progress bar, metrics and loader, torch's SGD; lean: loader, SGD."""
    from fastai.callback.progress import ProgressCallback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader as Loader
    from fastai.learner import Learner, Recorder
    from fastai.metrics import accuracy, top_k_accuracy
    from fastai.optimizer import OptimWrapper

    hyper = {"momentum": MOMENTUM, "nesterov": True, "fused": lean or None}
    dataset = TensorDataset(job.images, job.targets)
    few = TensorDataset(job.images[:10], job.targets[:10])
    batches = Loader(dataset, bs=job.task.batch, shuffle=True, num_workers=0)
    learner = Learner(
        DataLoaders(batches, Loader(few, bs=10, num_workers=0)),
        job.model(),
        loss_func=nn.CrossEntropyLoss(),
        opt_func=partial(OptimWrapper, opt=torch.optim.SGD, **hyper),
        lr=job.task.lr,
        wd=0.0,
        metrics=[] if lean else [accuracy, partial(top_k_accuracy, k=5)],
        cbs=fastai_clock(job, counts=lean),
    )
    if lean:
        learner.remove_cbs([Recorder, ProgressCallback])
    else:
        learner.recorder.train_metrics = True
    learner.fit(EPOCHS)
    if not lean:
        job.means(*learner.recorder.values[-1][:3])


def fastai_clock(job: Job, *, counts: bool) -> Any:
    """Return a callback that times an epoch and, if `counts`, calls `Job.note`."""
    from fastai.callback.core import Callback

    class Clock(Callback):
        order = 100  # after all other callbacks

        def before_train(self) -> None:
            job.begin()

        def after_batch(self) -> None:
            if counts and self.training:
                job.note(self.loss, self.pred, *self.yb)

        def after_train(self) -> None:
            job.end()

    return Clock()


def keras(job: Job, *, lean: bool) -> None:
    """Keras 3 on torch: a TorchModuleWrapper, Keras's SGD and metrics; lean: no progress bar."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    class Clock(keras.callbacks.Callback):
        on_epoch_begin = staticmethod(job.begin)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            job.end()
            job.means(*(logs[name] for name in NAMES))

    class Model(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network = keras.layers.TorchModuleWrapper(job.model())

        def call(self, images: Tensor) -> Tensor:
            return self.network(images)

    model = Model()
    model.compile(
        optimizer=keras.optimizers.SGD(job.task.lr, momentum=MOMENTUM, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[
            keras.metrics.SparseCategoricalAccuracy("top1"),
            keras.metrics.SparseTopKCategoricalAccuracy(5, "top5"),
        ],
    )
    model.fit(
        *(job.images, job.targets),
        batch_size=job.task.batch,
        epochs=EPOCHS,
        verbose=0 if lean else "auto",
        callbacks=[Clock()],
    )


BARE, FUSED = "bare loop", "bare loop, fused SGD"
CONTESTANTS: dict[str, Callable[[Job], None]] = {
    BARE: bare,
    FUSED: partial(bare, fused=True),
    "cnnzoo": partial(cnnzoo, shown=True),
    "cnnzoo, no progress bar": partial(cnnzoo, shown=False),
    "Ignite": partial(ignite, lean=False),
    "Ignite, lean": partial(ignite, lean=True),
    "Fabric": partial(fabric, lean=False),
    "Fabric, lean": partial(fabric, lean=True),
    "Accelerate": partial(accelerate, lean=False),
    "Accelerate, lean": partial(accelerate, lean=True),
    "Lightning": partial(lightning, how="default"),
    "Lightning, lean": partial(lightning, how="lean"),
    "Lightning, barebones": partial(lightning, how="barebones"),
    "fastai": partial(fastai, lean=False),
    "fastai, lean": partial(fastai, lean=True),
    "Keras on torch": partial(keras, lean=False),
    "Keras on torch, lean": partial(keras, lean=True),
}
MODULES = {  # the module to import, the package to install
    "Ignite": ("ignite", "pytorch-ignite"),
    "Fabric": ("lightning_fabric", "lightning-fabric"),
    "Accelerate": ("accelerate", "accelerate"),
    "Lightning": ("pytorch_lightning", "pytorch-lightning"),
    "fastai": ("fastai", "fastai"),
    "Keras on torch": ("keras", "keras"),
}
