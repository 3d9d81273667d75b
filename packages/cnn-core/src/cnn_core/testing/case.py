"""The objects that the checks test, with the data about them that several checks need."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from cnn_core import registry
from cnn_core.create import create_model
from cnn_core.errors import UsageError
from cnn_core.layers import Trace, trace
from cnn_core.specs import ModelSpec, Spec
from cnn_core.text import paper_table

__all__ = ["Case", "Offer", "cases_of", "offered"]

S = TypeVar("S", bound=Spec)


@dataclass(frozen=True)
class Offer(Generic[S]):
    """Something that an installed plugin offers: a model, a dataset, a view, and so on."""

    entry: registry.Entry[S]

    @property
    def spec(self) -> S:
        """The plugin's spec of the model, dataset, view, …"""
        return self.entry.spec

    def on_import(self, code: str) -> str:
        """Import the plugin in a new process, then run `code`; return the process's output.

        In this process the plugin, and everything it imports, is already loaded.
        """
        script = f"import sys, os\nbefore = set(os.listdir())\nimport {self.entry.plugin.target}\n"
        done = subprocess.run(
            [sys.executable, "-c", script + code], capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr


@dataclass(frozen=True)
class Case(Offer[ModelSpec]):
    """A model of an installed plugin."""

    @property
    def segments(self) -> bool:
        """Whether the model is for segmentation."""
        return self.spec.task == "segmentation"

    def build(self, **options: Any) -> nn.Module:
        """Return a new model, initialised with seed 0; the random state of torch is restored."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return create_model(self.entry.qualified, **options)

    @cached_property
    def model(self) -> nn.Module:
        """The model in eval mode, shared by the checks that do not modify it."""
        return self.build().eval()

    def images(self, count: int = 2, size: int | None = None, channels: int = 0) -> Tensor:
        """Return random but fixed images, N C H W; `size` defaults to the smallest."""
        size = size or self.spec.min_size
        generator = torch.Generator().manual_seed(0)
        shape = (count, channels or self.spec.input[0], size, size)
        return torch.randn(shape, generator=generator)

    def training_size(self, model: nn.Module) -> int:
        """Return an image size that training mode accepts: `min_size` or else the paper's size.

        Auxiliary classifiers, for example, may need larger images in training mode.
        """
        try:
            with torch.no_grad():
                copy.deepcopy(model).to("meta").train()(self.images(2).to("meta"))
        except UsageError:
            return self.spec.input[1]
        return self.spec.min_size

    @cached_property
    def traced(self) -> Trace:
        """The trace of the model's stages at the paper's image size."""
        return trace(self.build, self.spec.stages, self.spec.input)

    def module_doc(self) -> str:
        """Return the docstring of the file that defines the network."""
        module = importlib.import_module(self.spec.target.partition(":")[0])
        return module.__doc__ or ""

    def paper_table(self) -> str:
        """Return the table in that docstring, or an empty string."""
        return paper_table(self.module_doc())


def cases_of(distribution: str) -> list[Case]:
    """Return the models of an installed distribution; a plugin's name is accepted, too.

    Raises:
        UsageError: the distribution offers no model.
    """
    found = [Case(entry) for entry in offered(registry.models(), distribution)]
    if not found:
        known = sorted({entry.plugin.distribution for _, entry in registry.models()})
        raise UsageError(
            f"'{distribution}' offers no model", f"distributions with models: {', '.join(known)}"
        )
    return found


def offered(catalogue: registry.Catalogue[S], distribution: str) -> Iterator[registry.Entry[S]]:
    """Yield a catalogue's entries that belong to a distribution or plugin of that name."""
    for _, entry in catalogue:
        if distribution in (entry.plugin.distribution, entry.plugin.name):
            yield entry
