"""Data sets: adapters behind one contract, whole in memory, batches prepared on the fly."""

from typing import TYPE_CHECKING

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_core.data.dataset import Dataset, Files, Split, load_dataset
    from cnn_core.data.pipeline import Batch, Preprocessing, batches

__all__ = ["Batch", "Dataset", "Files", "Preprocessing", "Split", "batches", "load_dataset"]

__getattr__ = lazy_names(
    __name__,
    {
        "cnn_core.data.pipeline": ("Batch", "Preprocessing", "batches"),
        "cnn_core.data.dataset": ("Dataset", "Files", "Split", "load_dataset"),
    },
)
