"""Choose how the images of a dataset reach training: from memory, from files, or from a pack."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cnn_core.data.bad_samples import BadSamples
from cnn_core.data.compact import compact_paths
from cnn_core.data.dataset import Dataset
from cnn_core.data.decoder import Center, Size
from cnn_core.data.packing import pack
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.splits import Files, Item
from cnn_core.data.streaming import Progress, decode_to_memory
from cnn_core.errors import UsageError

__all__ = ["IN_MEMORY", "load_splits", "pipeline_of"]

IN_MEMORY = 2 * 2**30  # pipeline = "auto" keeps at most this many bytes of images in memory


def pipeline_of(dataset: Dataset, preprocessing: Preprocessing, pipeline: str = "auto") -> str:
    """Return "memory", "streaming" or "packed"; "auto" streams more than IN_MEMORY bytes.

    Raises:
        UsageError: the dataset is to be streamed or packed but has no files.
    """
    on_disk = [split for split in dataset.splits.values() if isinstance(split, Files)]
    if pipeline in ("streaming", "packed") and not on_disk:
        verb = "streamed" if pipeline == "streaming" else "packed"
        raise UsageError(f"dataset '{dataset.spec.name}' is in memory and cannot be {verb}")
    if pipeline != "auto":
        return pipeline
    size, _ = _stored(dataset, preprocessing)
    height, width = size or dataset.spec.image[1:]
    # The total over all splits: they are in memory at the same time.
    total = sum(map(len, on_disk)) * dataset.spec.image[0] * height * width
    return "streaming" if total > IN_MEMORY else "memory"


def _stored(dataset: Dataset, preprocessing: Preprocessing) -> tuple[Size | None, Center | None]:
    """Return how files become images in memory: the size to resize to, and the part to cut out."""
    _, height, width = dataset.spec.image
    size = None if height else preprocessing.resize_to
    # Small images are kept as they are: enlarged ones would only take more memory.
    if preprocessing.crops and (size or min(height, width) > preprocessing.resize):
        return (preprocessing.resize, preprocessing.resize), preprocessing.center_square
    return size, None


def load_splits(
    dataset: Dataset,
    preprocessing: Preprocessing,
    pipeline: str = "auto",
    threads: int = 1,
    bad: BadSamples | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Return the dataset decoded into memory, or to be read while training: see `pipeline_of`.

    Raises:
        UsageError: the dataset is to be streamed or packed but has no files.
        DatasetCorruptError: there are more bad files than `bad` allows (by default none), no file
            can be decoded, or the sizes of images to keep in memory differ. For a stream, only the
            headers of files count.
        ResourceError: a pack cannot be written.
    """
    record = bad or BadSamples()
    pipeline = pipeline_of(dataset, preprocessing, pipeline)
    if pipeline == "packed":
        dataset, errors = pack(dataset, preprocessing, threads, progress)
        record.messages += errors
    _, height, width = dataset.spec.image
    size, center = _stored(dataset, preprocessing)
    splits = dict(dataset.splits)
    for name, files in dataset.splits.items():
        if not isinstance(files, Files):
            continue
        if pipeline == "packed":
            splits[name] = replace(files, bad=record)
        elif pipeline == "streaming":
            record.messages += [
                dataset.broken[path] for path in files.images if path in dataset.broken
            ]
            splits[name] = _compact(replace(files, bad=record))
        else:
            splits[name] = decode_to_memory(
                files,
                size,
                threads=threads,
                bad=record,
                progress=progress,
                required_size=(height, width) if height else None,
                center=center,
            )
    record.raise_if_too_many()  # after all splits, so that one error covers them all
    return replace(dataset, splits=splits)


def _compact(files: Files) -> Files:
    """Return a split with its paths in little memory, which workers share."""
    if any(isinstance(image, Item) for image in files.images[:1]):
        return files
    targets = files.targets
    if not isinstance(targets, Tensor):
        targets = compact_paths(targets)
    return replace(files, images=compact_paths(files.images), targets=targets)
