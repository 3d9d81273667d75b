"""Read images for a network, ahead of it and in order: files, PIL images, arrays and tensors."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cnn_core.data.formats import SUFFIXES
from cnn_core.data.images import MAX_PIXELS, read_image, upright_copy
from cnn_core.data.pixels import Reading, image_pixels
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.data.readers.listing import LeftOut, sorted_files
from cnn_core.errors import CorruptError, DatasetCorruptError, UsageError, ZooError
from cnn_core.files import expanded

__all__ = [
    "Images",
    "LoadedImage",
    "Loader",
    "image_files",
    "load_ahead",
    "named_files",
    "read_ahead",
    "require_distinct_names",
    "single_images",
]

# A path, a folder, a PIL image, an array, a tensor, or any nesting of iterables of them.
Images = Any
Source = Path | Image.Image | Tensor
NO_FILE = "no such image file or folder"
GREY_RGB_RGBA = (1, 3, 4)

log: logging.Logger = logging.getLogger("cnn_core")

T = TypeVar("T")
R = TypeVar("R")


# --- files ------------------------------------------------------------------------------------


def named_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[tuple[Path, Path]]:
    """Yield the given files, and for each folder its image files, with names for output files.

    The name has no suffix. For a file in a given folder it is the path below that folder; for a
    file that was given itself, only the last part of its path.

    Raises:
        UsageError: a path does not exist, or a folder contains no images.
    """
    for path in map(expanded, paths):
        if path.is_dir():
            left_out = LeftOut()
            files = sorted_files(path, left_out)
            missed = left_out.lines(missed=True)
            if not files:
                raise UsageError(
                    f"{path}: no images in this folder",
                    "; ".join(missed) or f"expected {', '.join(SUFFIXES)}",
                )
            for line in missed:
                log.warning("%s", line)
            yield from ((file, file.relative_to(path).with_suffix("")) for file in files)
        elif path.is_file():
            yield path, Path(path.stem)
        else:
            raise UsageError(f"{path}: {NO_FILE}")


def image_files(paths: Iterable[str | os.PathLike[str]]) -> Iterator[Path]:
    """Yield the given files, and for each folder and its sub-folders the image files, sorted.

    Raises:
        UsageError: a path does not exist, or a folder contains no images.
    """
    return (path for path, _ in named_files(paths))


def require_distinct_names(
    files: Iterable[Path], names: Mapping[Path, Path] | None = None
) -> list[Path]:
    """Return the files if their output files have distinct names.

    `names` has the path of each file's output, without suffix; by default it is the file's own
    name.

    Raises:
        UsageError: two files have the same name.
    """
    seen: dict[str | Path, Path] = {}
    for path in files:
        name = path.stem if names is None else names[path]
        if (other := seen.setdefault(name, path)) != path:
            raise UsageError(
                f"{other} and {path} have the same name, so their output files would collide",
                "run the command once for each, with a different --out DIR",
            )
    return list(seen.values())


# --- images of any kind -----------------------------------------------------------------------


def single_images(images: Images) -> Iterator[Source | CorruptError]:
    """Yield every image of paths, folders, PIL images, arrays, tensors and iterables of them.

    Arrays are H W, H W C or N H W C, and tensors C H W or N C H W: uint8, or floats in [0, 1],
    which are rounded to 8 bits. They are copied, so the caller may reuse their memory. Files are
    not opened. For a PIL image that cannot be read, its error is yielded.

    Raises:
        UsageError: an image has another type, shape or range, or a folder contains no images.
    """
    if isinstance(images, str | os.PathLike):
        path = expanded(images)
        yield from image_files([path]) if path.is_dir() else (path,)
    elif isinstance(images, Image.Image):
        try:
            # Now, and not in a thread: the caller may go on to another frame of the image.
            copy = upright_copy(images, getattr(images, "filename", "") or "PIL image")
        except CorruptError as error:
            yield error
        else:
            yield copy
    elif isinstance(images, np.ndarray):
        yield from _from_array(images)
    elif isinstance(images, Tensor):
        if images.ndim not in (3, 4):
            raise UsageError(f"a tensor of shape {[*images.shape]}: expected C H W or N C H W")
        yield from _bytes(images if images.ndim == 4 else images[None])
    elif isinstance(images, Iterable) and not isinstance(images, bytes | Mapping):
        for image in images:
            yield from single_images(image)
    else:
        raise UsageError(
            f"an image of type {type(images).__name__}",
            "expected paths, PIL images, arrays (H W or H W C) or tensors (C H W or N C H W)",
        )


def _from_array(array: np.ndarray) -> Iterator[Tensor]:
    """Yield the images of an array, H W, H W C or N H W C, as uint8 tensors, C H W."""
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3, 4) or channels not in GREY_RGB_RGBA:
        raise UsageError(
            f"an array of shape {[*array.shape]}: expected H W, H W C or N H W C with 1, 3 or 4 "
            "channels",
            "pass several grey images as a list: [*images]",
        )
    if array.ndim == 2:
        array = array[..., None]
    # Copied: torch rejects negative strides, as of a mirrored array, and read-only memory.
    tensor = torch.from_numpy(array.copy())
    yield from _bytes((tensor if array.ndim == 4 else tensor[None]).permute(0, 3, 1, 2))


def _bytes(images: Tensor) -> Tensor:
    """Return a copy of images, N C H W, as uint8 on the CPU."""
    if 0 in images.shape[1:]:
        raise UsageError(f"an image of shape {[*images.shape[1:]]} has no pixels")
    if images.dtype == torch.uint8:
        return images.cpu().clone(memory_format=torch.contiguous_format)
    if not images.is_floating_point():
        raise UsageError(f"images of type {images.dtype}: expected uint8, or floats in [0, 1]")
    images = images.detach().float().cpu()
    if not ((images >= 0) & (images <= 1)).all():  # NaN is neither
        raise UsageError(
            f"images of floats from {images.min():g} to {images.max():g}: expected [0, 1]",
            "pass uint8, or divide by 255; the network's own normalisation is applied afterwards",
        )
    return (images * 255).round().to(torch.uint8).contiguous()


# --- ahead of the network ---------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedImage:
    """An image that is ready for networks.

    `index` is its position among all images. `path` is None if it is not from a file. `inputs` has
    the input, float32 C h w, for each preprocessing of the `Loader`. `image`, uint8 C H W, is None
    unless the loader keeps it.
    """

    index: int
    path: Path | None
    inputs: tuple[Tensor, ...]
    image: Tensor | None


@dataclass(frozen=True)
class Loader:
    """Read an image and apply each preprocessing: (channels, preprocessing), one per network.

    Called with (index, image) from several threads. For a file that is missing or unreadable, the
    error is returned, so that the images after it are not lost. Without `keep_image` only the
    networks' inputs stay in memory: photographs are much larger.
    """

    inputs: tuple[tuple[int, Preprocessing], ...]
    keep_image: bool = False

    def __call__(self, numbered: tuple[int, Source | CorruptError]) -> LoadedImage | ZooError:
        index, source = numbered
        try:
            if isinstance(source, CorruptError):
                return source
            return self._load(index, source)
        except CorruptError as error:
            if isinstance(source, Path) and not source.exists():
                return UsageError(f"{source}: {NO_FILE}")
            return error

    @torch.inference_mode()  # each thread has its own mode
    def _load(self, index: int, source: Source) -> LoadedImage:
        path = source if isinstance(source, Path) else None
        # Dictionaries: the networks of an ensemble often share channels and preprocessing.
        pixels = {
            (channels, preprocessing.reading): _pixels(
                source, channels, preprocessing.reading, index
            )
            for channels, preprocessing in self.inputs
        }
        ready = {}
        for key in dict.fromkeys(self.inputs):
            channels, preprocessing = key
            own = pixels[channels, preprocessing.reading]
            _require_croppable(own, preprocessing, path or f"image {index}")
            ready[key] = preprocessing(own[None])[0]  # N C H W -> C h w
        channels, preprocessing = self.inputs[0]
        image = pixels[channels, preprocessing.reading] if self.keep_image else None
        return LoadedImage(index, path, tuple(ready[key] for key in self.inputs), image)


def _require_croppable(image: Tensor, preprocessing: Preprocessing, name: object) -> None:
    """Raise DatasetCorruptError for a strip of pixels that would become huge before cropping."""
    height, width = image.shape[-2:]
    longer = preprocessing.resize * max(height, width) // min(height, width)
    if preprocessing.crops and preprocessing.resize * longer > MAX_PIXELS:
        raise DatasetCorruptError(
            f"{name}: {width} x {height} pixels: too narrow to resize the shorter side to "
            f"{preprocessing.resize}"
        )


def _pixels(source: Source, channels: int, reading: Reading, index: int) -> Tensor:
    """Return an image, uint8 C H W, with this number of channels."""
    if isinstance(source, Path):
        return read_image(source, channels, reading)
    if isinstance(source, Tensor):
        if len(source) == channels:
            return source
        if len(source) in GREY_RGB_RGBA and channels in GREY_RGB_RGBA:
            source = Image.fromarray(source.permute(1, 2, 0).squeeze(2).numpy())
    if isinstance(source, Tensor) or channels not in GREY_RGB_RGBA:
        own = len(source) if isinstance(source, Tensor) else len(source.getbands())
        raise UsageError(f"image {index} has {own} channels, the network takes {channels}")
    return image_pixels(source, channels, reading, f"image {index}")


def read_ahead(
    items: Iterable[T], work: Callable[[T], R], *, limit: int, threads: int
) -> Generator[R, None, None]:
    """Yield `work(item)` of all items in order, computed by threads ahead of the caller.

    At most `limit` items are in work or wait for the caller.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        for item in items:
            if len(waiting) >= limit:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        # Also when the caller stops early, or Ctrl-C ends it.
        pool.shutdown(wait=True, cancel_futures=True)


def load_ahead(
    images: Images, loader: Loader, *, limit: int
) -> Generator[LoadedImage | ZooError, None, None]:
    """Yield all images in order, decoded and preprocessed by threads: Pillow releases the GIL."""
    numbered = enumerate(single_images(images))
    threads = min(torch.get_num_threads(), limit)
    return read_ahead(numbered, loader, limit=limit, threads=threads)
