"""Serialise tensors to the safetensors format without copying them.

`safetensors.torch.save` builds the whole file in memory, twice, so a large checkpoint takes longer
to assemble than to write. This module produces the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["on_cpu", "packed"]

ALIGNMENT = 8  # bytes; the tensor data starts at a multiple of it
NAMES = {  # in the library's order: wide types first, so that all tensors are aligned
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
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[memoryview]:
    """Return the parts of a safetensors file, to be written one after the other.

    The tensors must be contiguous and on the CPU. The file orders them by dtype, then by name.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(NAMES)}
    ordered = sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0]))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, offset = [], 0
    for name, tensor in ordered:
        data = tensor.reshape(-1).view(torch.uint8).numpy().data
        span = [offset, offset + len(data)]
        shape = list(tensor.shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": span}
        parts.append(data)
        offset = span[1]
    # The library writes its header without spaces, too.
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    return [memoryview(len(encoded).to_bytes(8, "little") + encoded), *parts]


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors as contiguous CPU tensors, which `packed` requires."""
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
