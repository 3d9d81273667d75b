"""Quantise an exported network to int8, calibrated on training images, and measure the cost.

The format is ONNX with QuantizeLinear and DequantizeLinear nodes, for which onnxruntime has int8
kernels. torch has moved its quantisation of exported programs to another package, torchao, and
runs the result in float32 unless it is compiled.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from cnn_core.data.batching import batches
from cnn_core.data.preprocessing import Preprocessing
from cnn_core.errors import NumericalError, UsageError, ZooError
from cnn_core.plugins.discovery import describe
from cnn_core.registry.names import base_name
from cnn_core.text import counted
from cnn_core.training.evaluation import eval_batch_size, eval_setup, evaluate_split, predictor
from cnn_core.training.exported import READERS, ExportedNetwork
from cnn_core.training.trained import Trained

__all__ = ["Quantized", "quantize", "require_images"]

IMAGES = 256  # for calibration; onnxruntime's examples take a few hundred
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What int8 costs: metrics on the `test_images` of the test split, and sizes in bytes.

    `calibration_images` of the training split of `data` gave the ranges of the activations. For
    them, `difference` is the largest difference between an output of the int8 and the float32
    network, as a fraction of the largest output. The file's metadata has all of it under the key
    "int8", without the sizes.
    """

    data: str
    calibration_images: int
    test_images: int
    float32: Mapping[str, float]
    int8: Mapping[str, float]
    float32_bytes: int
    int8_bytes: int
    difference: float


def require_images(trained: Trained) -> None:
    """Raise UsageError unless there are images to calibrate on and to measure with."""
    for split in ("train", "test"):
        trained.dataset.split(split)


def quantize(
    file: IO[bytes],
    trained: Trained,
    metadata: Mapping[str, Any],
    *,
    batch_size: int | None,
    pictures: bool,
) -> Quantized:
    """Replace the content of an exported ONNX file by an int8 version; return what it costs.

    Weights have 7 bits and one scale per output channel: with 8 bits, processors without VNNI
    instructions would overflow in some sums, and results would depend on the processor.

    Raises:
        UsageError: the source has no dataset, or it has too few images for the batch size.
        NumericalError: the int8 network returns values that are not finite.
        ZooError: onnxruntime cannot quantise the network.
    """
    path = Path(file.name)
    setup = replace(eval_setup(trained), device=CPU)
    test = trained.dataset.split("test")
    before = evaluate_split(trained.new_model().cpu(), test, setup)
    inputs, count = _calibration_inputs(path, trained, batch_size, pictures)
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "int8.onnx"
        _quantize_file(path, quantized, inputs, trained.weights.model)
        preprocessing = _included(trained, pictures)
        network = ExportedNetwork(READERS[".onnx"](str(quantized)), preprocessing)
        after = evaluate_split(network, test, setup)
        difference = _difference(path, quantized, inputs)
        content = quantized.read_bytes()
    # Without finite outputs there is no loss.
    if not math.isfinite(loss := after.get("loss", math.nan)):
        raise NumericalError(f"int8 network of '{trained.weights.model}': loss {loss}")
    facts: dict[str, Any] = {
        "data": base_name(trained.recipe.data),
        "calibration_images": count,
        "test_images": len(test),
        "float32": before,
        "int8": after,
        "difference": difference,
    }
    content = _with_metadata(content, {**metadata, "int8": facts})
    sizes = {"float32_bytes": path.stat().st_size, "int8_bytes": len(content)}
    file.seek(0)
    file.truncate()
    file.write(content)
    return Quantized(**(facts | sizes))


def _included(trained: Trained, pictures: bool) -> Preprocessing | None:
    """Return the preprocessing that the file includes, if any."""
    return trained.weights.preprocessing if pictures else None


def _calibration_inputs(
    path: Path, trained: Trained, batch_size: int | None, pictures: bool
) -> tuple[list[np.ndarray], int]:
    """Return the inputs of the float32 file for training images, and the number of images."""
    train, preprocessing = trained.dataset.split("train"), trained.weights.preprocessing
    # Evenly over the whole split, which is often sorted by class.
    chosen = torch.linspace(0, len(train) - 1, min(IMAGES, len(train))).round().long()
    compute = READERS[".onnx"](str(path))
    inputs: list[np.ndarray] = []

    def record(images: Tensor) -> Tensor:
        inputs.extend(part.numpy() for part in images.split(batch_size or len(images)))
        return compute(images)

    # As in evaluation, so that inputs are uint8 images, or tiles, if those of the network are.
    logits_of = predictor(ExportedNetwork(record, _included(trained, pictures)), preprocessing)
    subset = train.subset(chosen)
    with torch.inference_mode():
        for batch in batches(subset, preprocessing, eval_batch_size(preprocessing), device=CPU):
            logits_of(batch.images.contiguous())
    full = [part for part in inputs if batch_size in (None, len(part))]
    if not full:
        raise UsageError(
            f"batch_size = {batch_size}: calibration needs a full batch, and there "
            f"{'is' if len(chosen) == 1 else 'are'} only {counted(len(chosen), 'image')}"
        )
    return full, len(chosen)


def _quantize_file(path: Path, out: Path, inputs: list[np.ndarray], model: str) -> None:
    """Write the int8 version of an ONNX file."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.left, None)
            return None if batch is None else {"images": batch}

    folded = out.with_name("folded.onnx")
    try:
        # Folds batch normalisation into convolutions, which would keep their float32 otherwise.
        quant_pre_process(str(path), str(folded), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(folded),
            str(out),
            Reader(),
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
    except Exception as error:  # it raises many types of exception
        raise ZooError(f"onnxruntime cannot quantise '{model}': {describe(error)}") from error


def _difference(path: Path, quantized: Path, inputs: list[np.ndarray]) -> float:
    """Return the largest difference between outputs of two files, relative to the largest."""
    before, after = (READERS[".onnx"](str(file)) for file in (path, quantized))
    largest = highest = 0.0
    for batch in map(torch.from_numpy, inputs):
        expected = before(batch)
        largest = max(largest, (after(batch) - expected).abs().max().item())
        highest = max(highest, expected.abs().max().item())
    return largest / max(highest, 1e-30)


def _with_metadata(content: bytes, metadata: Mapping[str, Any]) -> bytes:
    """Return an ONNX file with this metadata, and no other."""
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    onnx.helper.set_model_props(model, texts)
    return bytes(model.SerializeToString())
