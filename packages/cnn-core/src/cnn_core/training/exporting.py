"""Export a run's network into a file that runs without its Python: torch.export's, or ONNX.

The file holds its description: model, classes, preprocessing. In ONNX each is a text among the
metadata_props; in a .pt2 they are an extra file, cnnzoo.json.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from cnn_core.create import build
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import NumericalError, UnknownNameError, UsageError, ZooError
from cnn_core.files import write_atomically
from cnn_core.plugins.discovery import describe
from cnn_core.training.prediction import task_of
from cnn_core.training.trained import Source, Trained
from cnn_core.version import __version__
from cnn_core.weights.native import Weights

__all__ = ["Exported", "FORMATS", "export"]

FORMATS = {"torch-export": ".pt2", "onnx": ".onnx"}
TOLERANCE = 1e-4  # of the largest output: float32 rounds to about 1e-6 of it
# 2 comes first, as the example for torch.export, which treats a size of 1 as a constant.
BATCHES = (2, 1, 3)  # sizes to try a file with that takes any number of images

Program = torch.export.ExportedProgram


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A file with a network, and how far its outputs are from the network's.

    It takes `input`, C H W, of type `dtype`. It was tried with `batches` images at once;
    `difference` is the largest between two outputs, as a fraction of the largest output.
    """

    path: Path
    format: str
    input: tuple[int, ...]
    dtype: str
    batches: tuple[int, ...]
    difference: float


class FromPictures(nn.Module):
    """A network behind the preprocessing of its images."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model: nn.Module = model
        self.preprocessing: Preprocessing = preprocessing

    def forward(self, images: Tensor) -> Any:
        """Return the network's outputs for uint8 images, N C h w."""
        pictures = self.preprocessing.resized(images)
        return self.model(self.preprocessing.normalise(pictures))


def export(
    run: Trained | Source,
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    batch_size: int | None = None,
    pictures: bool = False,
    force: bool = False,
) -> Exported:
    """Write the network of a run, in eval mode, into a file that runs without its Python.

    `format` is "torch-export" or "onnx"; by default the ending of `out` decides. `out` is
    RUN/MODEL.pt2 or .onnx by default. The file takes the network's inputs, normalised float32
    N C H W, and returns logits; N is any number, or `batch_size`. With `pictures` it takes uint8
    images of the size that training scaled images to, and normalises by itself.

    Before the file gets its name, it is run on random images and compared with the network.

    Raises:
        UsageError: `out` exists and `force` is not set, or its ending is another format's; ONNX
            is not installed.
        ZooError: torch cannot export the network.
        NumericalError: an output differs by more than 1e-4 of the largest.
    """
    kind = _format(format, out)
    weights = Trained.of(run).weights
    path = _target(weights, out, kind, force)
    model, batches = build(weights), (batch_size,) if batch_size else BATCHES
    images = [_random_pictures(weights, count) for count in batches]
    inputs = [weights.preprocessing(i) for i in images]
    taken = images if pictures else inputs
    whole = FromPictures(model, weights.preprocessing).eval() if pictures else model
    program = _program(weights, whole, taken[0], any_batch=batch_size is None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_atomically(path) as file, torch.no_grad():
        WRITERS[kind](program, file, _facts(weights, pictures))
        # The reader opens the file by its name.
        file.flush()
        # Compare with the library's own preprocessing, not with `whole`: with pictures, the
        # exported preprocessing is part of what may be wrong.
        compute = READERS[kind](file.name)
        difference = max(map(_difference, map(compute, taken), map(model, inputs)))
        _require_equal(path, difference)
    shape, dtype = tuple(taken[0].shape[1:]), str(taken[0].dtype).removeprefix("torch.")
    return Exported(
        path=path, format=kind, input=shape, dtype=dtype, batches=batches, difference=difference
    )


def _format(format: str | None, out: str | os.PathLike[str] | None) -> str:
    """Return the format asked for, or named by `out`."""
    suffix = "" if out is None else Path(out).suffix
    named = {ending: name for name, ending in FORMATS.items()}
    kind = format or named.get(suffix, "torch-export")
    if kind not in FORMATS:
        raise UnknownNameError("format", kind, FORMATS, f"known: {', '.join(FORMATS)}")
    if out is not None and suffix != FORMATS[kind]:
        raise UsageError(f"{out}: expected a name that ends in {FORMATS[kind]}, for {kind}")
    if kind == "onnx":
        _require_onnx()
    return kind


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ImportError as error:
            what = f"{error.name or name} is not installed"
            raise UsageError(what, 'pip install "cnn-core[onnx]"') from error


def _target(
    weights: Weights, out: str | os.PathLike[str] | None, format: str, force: bool
) -> Path:
    """Return where to write; by default beside the weights, under the model's name."""
    assert weights.path is not None
    name = weights.model.rpartition("/")[2] + FORMATS[format]
    path = weights.path.with_name(name) if out is None else Path(out)
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already", "--force replaces it")
    return path


def _random_pictures(weights: Weights, count: int) -> Tensor:
    """Return images of noise, uint8 N C h w, as the network's preprocessing takes them."""
    expected = weights.preprocessing
    size = expected.size if expected.tiled else expected.resize_to
    generator = torch.Generator().manual_seed(count)
    shape = (count, weights.in_channels, *size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def _program(weights: Weights, model: nn.Module, example: Tensor, *, any_batch: bool) -> Program:
    """Export a network with torch.export, without the paths of its source files."""
    shapes = ({0: torch.export.Dim("batch")},) if any_batch else None
    try:
        program = torch.export.export(model, (example,), dynamic_shapes=shapes)
    # torch.export raises exceptions of many kinds, depending on what it meets.
    except Exception as error:
        what = f"torch cannot export '{weights.model}': {describe(error)}"
        hint = "if the network needs a fixed number of images: --batch-size N"
        raise ZooError(what, hint if any_batch else "") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _facts(weights: Weights, pictures: bool) -> dict[str, Any]:
    """Return the description that goes into the file."""
    return {
        "model": weights.model,
        "task": task_of(weights),
        "classes": weights.classes,
        "takes": "uint8 images" if pictures else "normalised float32",
        **asdict(weights.preprocessing),
        "cnn-core": __version__,
    }


def _require_equal(path: Path, difference: float) -> None:
    """Raise NumericalError unless the difference is small, and a number."""
    # Not `difference > TOLERANCE`, which a NaN would pass.
    if not difference <= TOLERANCE:
        raise NumericalError(
            f"{path}: not written: what it computes differs from the network by {difference:.1e} "
            f"of the largest output, expected at most {TOLERANCE:.0e}",
            "the other --format may do better",
        )


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a part of the largest expected value."""
    if found.shape != expected.shape:
        return math.inf
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def _write_torch(program: Program, file: IO[bytes], facts: dict[str, Any]) -> None:
    torch.export.save(program, file, extra_files={"cnnzoo.json": json.dumps(facts)})


def _read_torch(path: str) -> Callable[[Tensor], Tensor]:
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def _write_onnx(program: Program, file: IO[bytes], facts: dict[str, Any]) -> None:
    """Write an ONNX file whose axis of any length, if it has one, is called "batch"."""
    made = torch.onnx.export(
        program,
        input_names=["images"],
        output_names=["logits"],
        # A program for one batch size has no range constraints.
        dynamic_shapes=({0: "batch"},) if program.range_constraints else None,
        verbose=False,
    )
    assert made is not None
    for name, value in facts.items():
        # ONNX metadata are strings.
        text = value if isinstance(value, str) else json.dumps(value)
        made.model.metadata_props[name] = text
    file.write(made.model_proto.SerializeToString())


def _read_onnx(path: str) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Else onnxruntime takes all cores, also where torch was told to use fewer.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


WRITERS = {"torch-export": _write_torch, "onnx": _write_onnx}
READERS = {"torch-export": _read_torch, "onnx": _read_onnx}
