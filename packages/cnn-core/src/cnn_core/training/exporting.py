"""Export a run's network to torch.export or ONNX, which run without the model's Python code.

The file includes metadata: model, task, classes and preprocessing. An ONNX file has them in
metadata_props, a .pt2 file in the extra file cnnzoo.json.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import NumericalError, UnknownNameError, UsageError, ZooError
from cnn_core.files import expanded, write_atomically
from cnn_core.plugins.discovery import describe
from cnn_core.runs.destinations import folder_of, require_writable
from cnn_core.training.exported import METADATA, READERS, UINT8, ExportedNetwork, require_onnx
from cnn_core.training.prediction import task_of
from cnn_core.training.quantization import Quantized, quantize, require_images
from cnn_core.training.trained import Source, Trained
from cnn_core.version import __version__
from cnn_core.weights.native import Weights

__all__ = ["Exported", "FORMATS", "export"]

FORMATS = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # relative to the largest output; float32 rounding causes about 1e-6
# 2 comes first because it is the example for torch.export, which treats a size of 1 as constant.
TEST_BATCH_SIZES = (2, 1, 3)  # to check a file with a dynamic batch size

Program = torch.export.ExportedProgram


@dataclass(frozen=True, kw_only=True)
class Exported:
    """An exported file, and the result of comparing its outputs with the network's.

    The file takes inputs of shape N x `input`, where `input` is C H W, and type `dtype`. It was
    checked with the batch sizes in `batches`. `difference` is the largest difference between two
    outputs, as a fraction of the largest output, of the float32 network. `int8` says what int8
    costs, if the network was quantised.
    """

    path: Path
    format: str
    input: tuple[int, ...]
    dtype: str
    batches: tuple[int, ...]
    difference: float
    int8: Quantized | None = None


class WithPreprocessing(nn.Module):
    """A network that preprocesses its input images first."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.preprocessing: Preprocessing = preprocessing

    def forward(self, images: Tensor) -> Any:
        """Return the network's outputs for uint8 images, N C h w."""
        resized = self.preprocessing.resized(images)
        return self.model(self.preprocessing.normalise(resized))


def export(
    run: Trained | Source,
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    batch_size: int | None = None,
    pictures: bool = False,
    int8: bool = False,
    force: bool = False,
) -> Exported:
    """Export a run's network, in eval mode, to a file that runs without the model's Python code.

    `format` is "torch-export" or "onnx"; by default the suffix of `out` decides. `out` defaults to
    RUN/MODEL.pt2 or RUN/MODEL.onnx. The exported network maps normalised float32 images, N C H W,
    to logits. N is dynamic unless `batch_size` is given. With `pictures` the inputs are uint8
    images at the run's image size, and the file includes the preprocessing.

    With `int8` the ONNX file computes with 8-bit integers. Images of the training split calibrate
    it, and its metrics on the test split are returned, and written into the file, beside those of
    the network. `out` then defaults to RUN/MODEL-int8.onnx.

    Before the file is renamed to `out`, it is run on random images and its outputs are compared
    with the network's.

    Raises:
        UsageError: `out` exists and `force` is false, `out` has the wrong suffix for the format,
            an ONNX package is not installed, or `int8` is for another format or lacks a dataset.
        ZooError: torch cannot export the network.
        NumericalError: an output differs by more than 1e-4 of the largest output.
    """
    kind = _format(format, out, int8)
    trained, model = _opened(run, int8)
    weights = trained.weights
    path = _output_path(trained, out, ("-int8" if int8 else "") + FORMATS[kind], force)
    require_writable(path.parent, path)
    batches = (batch_size,) if batch_size else TEST_BATCH_SIZES
    # Pillow, which crops, cannot be exported: the file takes images that are cropped already.
    preprocessing = weights.preprocessing.after_cropping
    images = [_random_images(weights, count) for count in batches]
    inputs = [preprocessing(i) for i in images]
    examples = images if pictures else inputs
    exported = WithPreprocessing(model, preprocessing).eval() if pictures else model
    program = _program(weights, exported, examples[0], dynamic_batch=batch_size is None)
    folder_of(path)
    metadata, cost = _metadata(weights, pictures), None
    with write_atomically(path) as file, torch.no_grad():
        WRITERS[kind](program, file, metadata)
        file.flush()  # the reader below opens the file by name
        # Compare with the original preprocessing and model, not with `exported`: with `pictures`
        # the exported preprocessing must be checked too.
        compute = READERS[FORMATS[kind]](file.name)
        difference = max(map(_difference, map(compute, examples), map(model, inputs)))
        _require_close(path, difference)
        if int8:
            cost = quantize(file, trained, metadata, batch_size=batch_size, pictures=pictures)
    shape, dtype = tuple(examples[0].shape[1:]), str(examples[0].dtype).removeprefix("torch.")
    fields: dict[str, Any] = {"input": shape, "dtype": dtype, "batches": batches, "int8": cost}
    return Exported(path=path, format=kind, difference=difference, **fields)


def _opened(run: Trained | Source, int8: bool) -> tuple[Trained, nn.Module]:
    """Return the source and its network on the CPU, which can be exported."""
    trained = Trained.of(run)
    model = trained.new_model().cpu()
    if isinstance(model, ExportedNetwork):
        raise UsageError(f"{trained.path}: is an exported file already", "export the run instead")
    if int8:
        require_images(trained)  # now, before the slow export
    return trained, model


def _format(format: str | None, out: str | os.PathLike[str] | None, int8: bool) -> str:
    """Return the given format, else the one that matches the suffix of `out`, else the default."""
    suffix = "" if out is None else Path(out).suffix
    by_suffix = {ending: name for name, ending in FORMATS.items()}
    kind = format or by_suffix.get(suffix, "onnx" if int8 else "torch-export")
    if int8 and kind != "onnx":
        raise UsageError("int8 is for ONNX files", "--format onnx, and --out FILE.onnx")
    if kind not in FORMATS:
        raise UnknownNameError("format", kind, FORMATS, f"known: {', '.join(FORMATS)}")
    if out is not None and suffix != FORMATS[kind]:
        raise UsageError(f"{out}: a {kind} file name must end in {FORMATS[kind]}")
    if kind == "onnx":
        require_onnx("onnx", "onnxruntime", "onnxscript")
    return kind


def _output_path(
    trained: Trained, out: str | os.PathLike[str] | None, ending: str, force: bool
) -> Path:
    """Return the path to write; by default MODEL plus the ending, in the run."""
    name = trained.weights.model.rpartition("/")[2] + ending
    path = trained.folder / name if out is None else expanded(out)
    if path.exists() and not force:
        raise UsageError(f"{path}: already exists", "--force replaces it")
    return path


def _random_images(weights: Weights, count: int) -> Tensor:
    """Return random uint8 images, N C h w, at the size that the preprocessing produces."""
    preprocessing = weights.preprocessing
    size = preprocessing.size if preprocessing.tiled else preprocessing.resize_to
    generator = torch.Generator().manual_seed(count)
    shape = (count, weights.in_channels, *size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _program(
    weights: Weights, model: nn.Module, example: Tensor, *, dynamic_batch: bool
) -> Program:
    """Return the exported program, without stack traces, which contain local paths."""
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    # torch.export raises many types of exception, depending on the network's code.
    except Exception as error:
        message = f"torch cannot export '{weights.model}': {describe(error)}"
        hint = "if the dynamic batch size is the problem: --batch-size N"
        raise ZooError(message, hint if dynamic_batch else "") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _metadata(weights: Weights, pictures: bool) -> dict[str, Any]:
    """Return the metadata to store in the file."""
    return {
        "model": weights.model,
        "task": task_of(weights),
        "classes": weights.classes,
        "mask_values": weights.mask_values,
        "colours": weights.colours,
        "background": weights.background,
        "thresholds": weights.thresholds,
        "takes": UINT8 if pictures else "normalised float32",
        **asdict(weights.preprocessing),
        "resize_filter": _resize_filter(weights.preprocessing),
        "cnn-core": __version__,
    }


def _resize_filter(preprocessing: Preprocessing) -> str:
    """Return how images are resized: another filter changes probabilities by up to a per cent."""
    if preprocessing.tiled:
        return "none: images keep their size"
    if preprocessing.crops:
        return f"Pillow, {preprocessing.interpolation}, antialiased"
    return (
        "torch interpolate, bilinear, antialias=True; pixels of images of another size than "
        "image_size are then rounded to whole grey levels"
    )


def _require_close(path: Path, difference: float) -> None:
    """Raise NumericalError if the difference is NaN or exceeds the tolerance."""
    # `difference > TOLERANCE` would be false for NaN.
    if not difference <= TOLERANCE:
        raise NumericalError(
            f"{path}: not written: its outputs differ from the network's by {difference:.1e} of "
            f"the largest output; the limit is {TOLERANCE:.0e}",
            "try the other --format",
        )


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a fraction of the largest expected absolute value."""
    if actual.shape != expected.shape:
        return math.inf
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def _write_torch(program: Program, file: IO[bytes], metadata: dict[str, Any]) -> None:
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})


def _write_onnx(program: Program, file: IO[bytes], metadata: dict[str, Any]) -> None:
    """Write an ONNX file; a dynamic batch axis is named "batch"."""
    exported = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=["logits"],
        # A program for one batch size has no range constraints.
        dynamic_shapes=({0: "batch"},) if program.range_constraints else None,
        verbose=False,
    )
    assert exported is not None
    for name, value in metadata.items():
        # ONNX metadata values are strings.
        text = value if isinstance(value, str) else json.dumps(value)
        exported.model.metadata_props[name] = text
    file.write(exported.model_proto.SerializeToString())


WRITERS = {"torch-export": _write_torch, "onnx": _write_onnx}
