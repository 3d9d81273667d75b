"""Data sets: adapters behind one contract, whole in memory, batches prepared on the fly."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_core.data.dataset import Dataset, Files, Split, load_dataset
    from cnn_core.data.download import Remote, fetch, fetch_and_extract
    from cnn_core.data.idx import read_idx
    from cnn_core.data.pipeline import Batch, Preprocessing, batches

__all__ = [
    "Batch",
    "Dataset",
    "Files",
    "Preprocessing",
    "Remote",
    "Split",
    "batches",
    "fetch",
    "fetch_and_extract",
    "load_dataset",
    "read_idx",
]

__getattr__: Callable[[str], Any] = lazy_names(
    __name__,
    {
        "cnn_core.data.pipeline": ("Batch", "Preprocessing", "batches"),
        "cnn_core.data.download": ("Remote", "fetch", "fetch_and_extract"),
        "cnn_core.data.idx": ("read_idx",),
        "cnn_core.data.dataset": ("Dataset", "Files", "Split", "load_dataset"),
    },
)
