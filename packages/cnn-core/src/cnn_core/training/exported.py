"""Run the networks of exported files: .pt2 of torch.export, and .onnx in onnxruntime."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import CorruptError, UsageError
from cnn_core.plugins.discovery import describe
from cnn_core.weights.native import Weights
from cnn_core.weights.published import file_digest

__all__ = [
    "ExportedNetwork",
    "METADATA",
    "READERS",
    "SUFFIXES",
    "UINT8",
    "open_exported",
    "require_layers",
    "require_onnx",
]

METADATA = "cnnzoo.json"  # the extra file of a .pt2 file
UINT8 = "uint8 images"

Compute = Callable[[Tensor], Tensor]


class ExportedNetwork(nn.Module):
    """The network of an exported file, with the input of the original: normalised float32 images.

    It has no modules that could be looked into and computes on the CPU. `preprocessing` is None,
    unless the file includes the preprocessing and takes uint8 images.
    """

    def __init__(self, compute: Compute, preprocessing: Preprocessing | None = None) -> None:
        super().__init__()
        self.compute: Compute = compute
        self.preprocessing: Preprocessing | None = preprocessing

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of normalised images, N C H W."""
        if self.preprocessing is None:
            return self.compute(inputs)
        # The pixels come back exactly: float32 resolves far more than 256 values.
        pixels = (self.preprocessing.denormalise(inputs) * 255).round().to(torch.uint8)
        height, width = self.preprocessing.resize_to
        top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
        return self.compute(pixels[..., top : top + height, left : left + width].contiguous())


def open_exported(path: Path) -> tuple[Weights, ExportedNetwork]:
    """Open a file that `cnnzoo export` wrote; return its description and its network.

    An exported file is a program: open only files that you trust. The returned weights have no
    tensors.

    Raises:
        CorruptError: the file is broken, or cnnzoo did not write it.
        UsageError: onnxruntime is not installed.
    """
    if path.suffix == ".onnx":
        require_onnx("onnxruntime")
    try:
        metadata = READ_METADATA[path.suffix](path)
        compute = READERS[path.suffix](str(path))
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # both libraries raise many types of exception on broken files
        raise CorruptError(f"{path}: not a readable exported file: {describe(error)}") from error
    if metadata is None:
        raise CorruptError(f"{path}: has no metadata of cnnzoo", "export it with cnnzoo export")
    try:
        weights = _described(metadata, path)
        takes_pixels = metadata["takes"] == UINT8
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(f"{path}: its metadata is incomplete or invalid: {error}") from error
    return weights, ExportedNetwork(compute, weights.preprocessing if takes_pixels else None)


def _described(metadata: dict[str, Any], path: Path) -> Weights:
    """Return the metadata as weights without tensors."""
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in metadata.items()
        if name in Preprocessing.__dataclass_fields__
    }
    preprocessing = Preprocessing(**fields)
    return Weights(
        tensors={},
        model=metadata["model"],
        num_classes=len(metadata["classes"]),
        in_channels=len(preprocessing.mean),
        options={},
        classes=tuple(metadata["classes"]),
        preprocessing=preprocessing,
        epoch=0,
        mask_values=tuple(metadata.get("mask_values", ())),
        colours=tuple(metadata.get("colours", ())),
        background=metadata.get("background", ""),
        task=metadata.get("task", ""),
        thresholds=tuple(metadata.get("thresholds", ())),
        path=path,
        digest=file_digest(path),
    )


def _torch_metadata(path: Path) -> dict[str, Any] | None:
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(METADATA)]
        content = json.loads(archive.read(names[0])) if names else None
    return content if isinstance(content, dict) else None


def _onnx_metadata(path: Path) -> dict[str, Any] | None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    if "cnn-core" not in found:
        return None
    texts = (
        "model",
        "task",
        "takes",
        "fit",
        "interpolation",
        "resize_filter",
        "alpha_background",
        "background",
        "cnn-core",
    )
    return {name: text if name in texts else json.loads(text) for name, text in found.items()}


def require_layers(weights: Weights) -> None:
    """Raise UsageError for an exported file: its layers and options are not known."""
    if not weights.tensors:
        raise UsageError(
            f"{weights.path}: an exported file, so there are no layers to look into",
            "give the run or the weights that it was exported from",
        )


def require_onnx(*names: str) -> None:
    """Raise UsageError unless these packages are installed."""
    from importlib import import_module

    for name in names:
        try:
            import_module(name)
        except ImportError as error:
            message = f"{error.name or name} is not installed"
            raise UsageError(message, 'pip install "cnn-core[onnx]"') from error


def _read_torch(path: str) -> Compute:
    with open(path, "rb") as file:
        program = torch.export.load(file)
    names = program.graph_signature.user_inputs
    (shape,) = (node.meta["val"].shape for node in program.graph.nodes if node.name == names[0])
    # Keep only the method: with the module as a submodule, `network.eval()` would raise an error.
    return _in_batches(program.module().__call__, shape[0])


def _read_onnx(path: str) -> Compute:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Otherwise onnxruntime takes all cores, even if torch was told to use fewer.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return _in_batches(
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        session.get_inputs()[0].shape[0],
    )


def _in_batches(compute: Compute, size: object) -> Compute:
    """Return a function for any number of images; a fixed batch `size` is filled up with zeros."""
    if not isinstance(size, int):  # a name or symbol: the file takes any number of images
        return compute

    def computed(images: Tensor) -> Tensor:
        parts = []
        for part in images.split(size):
            filled = F.pad(part, (0, 0) * (part.ndim - 1) + (0, size - len(part)))
            parts.append(compute(filled)[: len(part)])
        return torch.cat(parts)

    return computed


READERS = {".pt2": _read_torch, ".onnx": _read_onnx}
READ_METADATA = {".pt2": _torch_metadata, ".onnx": _onnx_metadata}
SUFFIXES = tuple(READERS)
