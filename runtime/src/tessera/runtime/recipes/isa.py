"""What an instruction set means for int8."""

from __future__ import annotations

from tessera.domain.ids import BuildClass

_EXACT_INT8 = ("amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "sve2", "sve", "i8mm", "dotprod")


def saturates(build_class: BuildClass) -> bool:
    """Whether products of int8 are added up in 16 bits, which overflow: weights then get 7 bits (ONNX Runtime's advice for x86 without
    VNNI)."""
    return build_class.split("-")[1] not in _EXACT_INT8
