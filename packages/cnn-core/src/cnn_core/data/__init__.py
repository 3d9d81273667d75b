"""A common interface to datasets in memory and on disk, and the batches made from them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnn_core.lazy import lazy_names

if TYPE_CHECKING:
    from cnn_core.data.batching import Batch, batches
    from cnn_core.data.dataset import Dataset, load_dataset
    from cnn_core.data.fetching.download import Remote, fetch, fetch_and_extract
    from cnn_core.data.preprocessing import Preprocessing
    from cnn_core.data.readers.idx import read_idx
    from cnn_core.data.splits import Files, Split

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
        "cnn_core.data.batching": ("Batch", "batches"),
        "cnn_core.data.preprocessing": ("Preprocessing",),
        "cnn_core.data.fetching.download": ("Remote", "fetch", "fetch_and_extract"),
        "cnn_core.data.readers.idx": ("read_idx",),
        "cnn_core.data.dataset": ("Dataset", "load_dataset"),
        "cnn_core.data.splits": ("Files", "Split"),
    },
)
