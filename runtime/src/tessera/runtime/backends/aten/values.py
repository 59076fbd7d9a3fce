"""Arrays and torch's tensors, without a copy."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tessera.domain.errors import Internal, InvalidInput, ResourceExhausted
from tessera.runtime.backends.interface import Tensor

_DATATYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "UINT8", torch.uint16: "UINT16", torch.uint32: "UINT32", torch.uint64: "UINT64",
    torch.int8: "INT8", torch.int16: "INT16", torch.int32: "INT32", torch.int64: "INT64",
    torch.float16: "FP16", torch.bfloat16: "BF16", torch.float32: "FP32", torch.float64: "FP64",
}  # fmt: skip


def expect_read_only() -> None:
    """What is mapped read-only is meant to be; no operator may write, and torch need not warn."""
    warnings.filterwarnings("ignore", message="The given (NumPy array|buffer) is not writable")


@contextmanager
def inference() -> Iterator[None]:
    """Around a run of a program. It ran when it was made: what differs from then is the input.

    Raises:
        InvalidInput: torch refuses the inputs (lengths that must agree, an index too large).
        ResourceExhausted: there is no memory for them.
    """
    try:
        with torch.inference_mode():
            yield
    except (RuntimeError, IndexError, ValueError) as error:
        text = " ".join(str(error).split())[:500]
        if "allocate memory" in text:
            raise ResourceExhausted(f"PyTorch: {text}") from error
        raise InvalidInput("inputs", None, f"the model cannot take them: {text}") from error


def to_torch(array: npt.NDArray[Any], datatype: str) -> torch.Tensor:
    """A tensor on the array's own memory."""
    if datatype == "BF16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_tensor(name: str, value: Any) -> Tensor:
    if not isinstance(value, torch.Tensor):
        raise Internal(f"output {name} is a {type(value).__name__}, not a tensor")
    value = value.contiguous()
    if value.dtype == torch.bfloat16:
        return Tensor("BF16", value.view(torch.int16).numpy().view(np.uint16))
    datatype = _DATATYPES.get(value.dtype)
    if datatype is None:
        raise Internal(f"output {name} has dtype {value.dtype}, which the protocol does not have")
    return Tensor(datatype, value.numpy())
