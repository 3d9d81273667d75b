"""Extract the features of image files or of a dataset, and write them to a .npz file."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cnn_core import registry
from cnn_core.data.batching import batches
from cnn_core.data.dataset import load_dataset
from cnn_core.data.splits import Files, Split
from cnn_core.errors import UsageError, ZooError
from cnn_core.files import expanded, write_atomically
from cnn_core.runs.destinations import folder_of
from cnn_core.text import did_you_mean, printable
from cnn_core.training.evaluation import eval_batch_size
from cnn_core.training.exported import ExportedNetwork
from cnn_core.training.image_stream import LoadedImage, Loader, image_files, load_ahead
from cnn_core.training.matching import with_channels
from cnn_core.training.stage_features import stage_features
from cnn_core.training.trained import Source, Trained

__all__ = ["Extraction", "Features", "Part", "features"]

Images = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Progress = Callable[[int, int], None]  # done, total
OnError = Callable[[ZooError], None]
UNKNOWN = -1  # the target of images without a class


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of N images, float32 N x D, from the CPU.

    `indices` are the images' positions in their split or among the given files, and `splits` the
    names of the splits, "" for files. `paths` are empty for a dataset in memory. `targets` are
    numbers of `classes`, or -1 for images without a class.
    """

    features: Tensor
    targets: Tensor
    indices: Tensor
    splits: tuple[str, ...]
    paths: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Images to extract features from: a split of a dataset, or files without classes."""

    name: str
    images: Split | Files
    classes: tuple[str, ...] = ()

    def targets(self, indices: Sequence[int]) -> list[int]:
        """Return the class numbers of images, or -1 where there are none, as for masks."""
        targets = self.images.targets
        if not self.classes or not isinstance(targets, Tensor) or targets.ndim != 1:
            return [UNKNOWN] * len(indices)
        found: list[int] = targets[[*indices]].tolist()
        return found


class Extraction:
    """One stage of a trained network, which turns images into features.

    By default the features are the inputs of the last stage, the classifier; for segmentation they
    are the outputs of the model's `cam_stage`. With `stage` they are the outputs of that module.
    Feature maps are averaged over their positions.

    Raises:
        UsageError: the source is an exported file, or a network that processes images in tiles.
    """

    def __init__(self, trained: Trained, stage: str | None = None) -> None:
        spec = registry.get_spec(trained.weights.model)
        self.trained = trained
        segments = spec.task == "segmentation"
        self.use_outputs: bool = segments or stage is not None
        self.stage: str = stage or (spec.cam_stage if segments else spec.stages[-1])
        if isinstance(trained.model, ExportedNetwork):
            raise UsageError(
                f"{trained.path}: an exported file has no stages",
                "use the run or the weights that it was exported from",
            )
        if trained.weights.preprocessing.tiled:
            raise UsageError(f"{trained.path}: processes images in tiles, which have no features")
        stage_features(trained.model, self.stage, ())  # raises if there is no such stage

    def of(self, part: Part, on_error: OnError) -> Iterator[tuple[list[int], Tensor]]:
        """Yield the indices and features of a part, batch by batch, without broken files."""
        seen: list[list[int]] = []
        inputs = self._inputs(part, on_error, seen.append)
        found = stage_features(
            self.trained.model, self.stage, inputs, use_outputs=self.use_outputs
        )
        for batch in found:
            yield seen.pop(), batch

    def _inputs(
        self, part: Part, on_error: OnError, see: Callable[[list[int]], None]
    ) -> Iterator[Tensor]:
        """Yield the network's inputs; call `see` with the indices of each batch before it."""
        weights, device = self.trained.weights, self.trained.device
        size = eval_batch_size(weights.preprocessing)
        if isinstance(part.images, Split):
            split = with_channels(part.images, weights.in_channels)
            for batch in batches(split, weights.preprocessing, size, device=device):
                see(batch.indices.tolist())
                yield batch.images
            return
        loader = Loader(((weights.in_channels, weights.preprocessing),))
        ready: list[LoadedImage] = []
        with closing(load_ahead(part.images.images, loader, limit=max(size, 2))) as stream:
            for index, loaded in enumerate(stream):
                if isinstance(loaded, LoadedImage):
                    ready.append(loaded)
                else:
                    on_error(loaded)
                # The last files may all be broken.
                if ready and (len(ready) == size or index == len(part.images) - 1):
                    see([image.index for image in ready])
                    yield torch.stack([image.inputs[0] for image in ready]).to(device)
                    ready = []

    def parts(
        self,
        images: Images,
        split: str | None = None,
        data_dir: str | os.PathLike[str] | None = None,
    ) -> list[Part]:
        """Return the splits of a dataset, or the one called `split`; or the given files.

        A string that is the name of a dataset means the dataset.

        Raises:
            UsageError: there is no such dataset, split, file or folder; or `split` or `data_dir`
                is given for files.
        """
        channels = self.trained.weights.in_channels
        if isinstance(images, str) and _is_dataset(images):
            dataset = load_dataset(images, data_dir=data_dir)
            splits = dataset.splits if split is None else {split: dataset.split(split)}
            return [
                Part(name=name, images=images, classes=dataset.spec.classes)
                for name, images in splits.items()
            ]
        for name, value in (("split", split), ("data_dir", data_dir)):
            if value is not None:
                raise UsageError(f"{name} = '{value}' is for datasets, not for files")
        paths = [images] if isinstance(images, str | os.PathLike) else images
        found = tuple(image_files(paths))
        return [Part(name="", images=Files(found, torch.full((len(found),), UNKNOWN), channels))]

    def collect(
        self, parts: Iterable[Part], on_error: OnError, progress: Progress | None = None
    ) -> Features:
        """Return the features of all images."""
        found: list[Tensor] = []
        rows = _Rows()
        for part, indices, batch in self._all([*parts], on_error, progress):
            rows.add(part, indices)
            found.append(batch)
        if not found:
            raise UsageError("there are no readable images")
        return rows.with_features(torch.cat(found))

    def write(
        self,
        path: Path,
        parts: Iterable[Part],
        on_error: OnError,
        progress: Progress | None = None,
    ) -> int:
        """Write the features of all images to a .npz file, atomically; return their number.

        Features go to disk batch by batch, so memory does not grow with them. The file has the
        arrays `features`, float32 N x D, `targets`, `indices`, `splits` and `paths` as in
        `Features`, `classes`, `stage`, `side` ("inputs" or "outputs" of the stage), `source` and
        `weights_sha256`. It is read with `numpy.load(path, allow_pickle=False)`.
        """
        rows, width = _Rows(), 0
        with tempfile.TemporaryFile(dir=folder_of(path)) as spool:
            for part, indices, batch in self._all([*parts], on_error, progress):
                rows.add(part, indices)
                width = batch.shape[1]
                spool.write(batch.numpy().tobytes())
            if not width:
                raise UsageError("there are no readable images")
            spool.seek(0)
            arrays = {
                **rows.arrays(),
                "stage": np.array(self.stage),
                "side": np.array("outputs" if self.use_outputs else "inputs"),
                "source": np.array(str(self.trained.path)),
                "weights_sha256": np.array(self.trained.weights.digest),
            }
            with write_atomically(path) as file:
                _write_npz(file, spool, (len(rows.indices), width), arrays)
        return len(rows.indices)

    def _all(
        self, parts: list[Part], on_error: OnError, progress: Progress | None
    ) -> Iterator[tuple[Part, list[int], Tensor]]:
        """Yield each part with the indices and features of its batches."""
        done, total = 0, sum(len(part.images) for part in parts)
        for part in parts:
            for indices, batch in self.of(part, on_error):
                yield part, indices, batch
                if progress is not None:
                    progress(done + indices[-1] + 1, total)
            done += len(part.images)


class _Rows:
    """Describes the rows of a feature matrix."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.targets: list[int] = []
        self.splits: list[str] = []
        self.paths: list[str] = []
        self.classes: tuple[str, ...] = ()

    def add(self, part: Part, indices: list[int]) -> None:
        """Add the samples of a part at these indices."""
        self.indices += indices
        self.targets += part.targets(indices)
        self.splits += [part.name] * len(indices)
        if isinstance(part.images, Files):
            self.paths += [str(part.images.images[index]) for index in indices]
        self.classes = part.classes

    def with_features(self, features: Tensor) -> Features:
        """Return the features, N x D, of these samples."""
        return Features(
            features=features,
            targets=torch.tensor(self.targets),
            indices=torch.tensor(self.indices),
            splits=tuple(self.splits),
            paths=tuple(self.paths),
            classes=self.classes,
        )

    def arrays(self) -> dict[str, Any]:
        """The arrays of the file, by name."""
        # File names on Linux are bytes that need not be UTF-8, but arrays of text are.
        paths = [
            path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            for path in self.paths
        ]
        return {
            "indices": np.array(self.indices, dtype=np.int64),
            "targets": np.array(self.targets, dtype=np.int64),
            "splits": np.array(self.splits, dtype=np.str_),
            "paths": np.array(paths, dtype=np.str_),
            "classes": np.array(self.classes, dtype=np.str_),
        }


def _write_npz(
    file: IO[bytes], spool: IO[bytes], shape: tuple[int, int], arrays: dict[str, Any]
) -> None:
    """Write arrays as `numpy.savez` does; those of `features` are read from `spool`."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open("features.npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array_header_1_0(entry, header)
            shutil.copyfileobj(spool, entry)
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)


def _is_dataset(name: str) -> bool:
    """Return whether a name is a dataset; raise UsageError if it is neither that nor a path."""
    base, exists = name.partition(":")[0], expanded(name).exists()
    # "digits" and "cnn-core/digits" are datasets, "./digits" is a folder.
    if registry.datasets().claims(base.rpartition("/")[2]) and not ("/" in base and exists):
        return True
    if exists:
        return False
    nearest = did_you_mean(base, registry.datasets().names())
    raise UsageError(
        f"'{printable(name)}' is neither an image file, a folder nor a dataset{nearest}",
        "datasets: cnnzoo list-datasets, or imagefolder:PATH",
    )


def features(
    source: Trained | Source,
    images: Images,
    *,
    stage: str | None = None,
    split: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str = "auto",
) -> Features:
    """Return the features that a trained network computes of image files or of a dataset.

    `images` is the name of a dataset, such as "cifar10" or "imagefolder:PATH", or else files and
    folders. By default all splits of a dataset are used. See `Extraction` for `stage`.

    Raises:
        UsageError: the source, images or split do not exist, or the source has no stages.
        UnknownNameError: the network has no such stage; suggests names.
        CorruptError: a file is not a readable image.
    """
    extraction = Extraction(Trained.of(source, device=device), stage)
    return extraction.collect(extraction.parts(images, split, data_dir), _raise)


def _raise(error: ZooError) -> None:
    raise error
