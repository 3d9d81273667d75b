"""Lay out a safetensors file without copying its tensors.

`safetensors.torch.save` builds the whole file in memory, twice, so that a large checkpoint takes
longer to assemble than to write. The bytes here are the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["on_cpu", "packed"]

ALIGNED = 8  # bytes: where the data begins
NAMES = {  # in the library's order: wide ones first, so that all are aligned
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def packed(
    tensors: Mapping[str, Tensor], text: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Return the header and the data of a safetensors file, with `text` as its metadata.

    The tensors have to be contiguous and on the CPU; the file has them by type, then by name.
    """
    places = {dtype: place for place, dtype in enumerate(NAMES)}
    ordered = sorted(tensors.items(), key=lambda item: (places[item[1].dtype], item[0]))
    header: dict[str, object] = {"__metadata__": dict(text)} if text else {}
    parts, offset = [], 0
    for name, tensor in ordered:
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        span = [offset, offset + len(data)]
        shape = list(tensor.shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": span}
        parts.append(data)
        offset = span[1]
    # As compact as the library's own header: the files are the same to the byte.
    words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    words += b" " * (-len(words) % ALIGNED)
    return [memoryview(len(words).to_bytes(8, "little") + words), *parts]


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU, as `packed` needs them."""
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
