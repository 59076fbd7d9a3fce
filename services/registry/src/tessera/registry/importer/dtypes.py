"""torch's dtypes and Open Inference's datatypes."""

from __future__ import annotations

import torch

from tessera.domain.errors import Unsupported

_DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}  # fmt: skip


def datatype_of(dtype: torch.dtype, what: str) -> str:
    """Raises: Unsupported when Open Inference has no name for it; `what` names the tensor."""
    try:
        return _DATATYPES[dtype]
    except KeyError:
        raise Unsupported(f"{what} has dtype {str(dtype).removeprefix('torch.')}, which no datatype of the protocol stands for") from None


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The contiguous, row-major, little-endian bytes of a CPU tensor, without a copy where it is contiguous already."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel() == 0:
        return memoryview(b"")
    return memoryview(flat.view(torch.uint8).numpy()).cast("B")
