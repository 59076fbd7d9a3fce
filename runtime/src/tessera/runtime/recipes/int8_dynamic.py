"""`ort-int8-dynamic`: weights of matrix products in int8, per channel; activations are quantised as they come. For transformers.

An activation has one scale, over all rows of its batch: what one row holds moves the steps of the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import onnx

from tessera.domain.artifact import PREPACKED
from tessera.domain.errors import Internal
from tessera.runtime.agreement import compared
from tessera.runtime.baked_graph import Optimised, fold, fuse_attention, optimise, runner
from tessera.runtime.recipes.base import Built, Work
from tessera.runtime.recipes.isa import saturates

_FUSED_COSINE = 0.99
"""Below it the fused graph is not what quantising should start from."""
_log = logging.getLogger(__name__)


def make(work: Work) -> Built:
    fused = fuse_attention(work.graph, work.tensors)
    made: Optimised | None = None
    if fused is not None:
        work.progress("quantising with fused attention", 0.1)
        try:
            candidate = _quantised(work, *fused)
            run = runner(candidate[0], {name: array for name, (array, _) in candidate[1].items()}, work.scratch)
            if compared(run, work.cases, work.artifact.signature.batched).cosine >= _FUSED_COSINE:
                made = candidate
        except Exception as error:  # whatever ONNX Runtime makes of it: there is another way
            _log.info("attention cannot be fused: %s", error)
    if made is None:
        work.progress("quantising", 0.3)
        made = _quantised(work, work.graph, work.tensors)
    return Built(*made, "int8", exact=False, options=(PREPACKED,), joins=False)


def _quantised(work: Work, graph: bytes, tensors: Mapping[str, npt.NDArray[Any]]) -> Optimised:
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(fold(graph, tensors, work.scratch))
    model.replace_gemm_with_matmul()  # there is no dynamic int8 kernel for Gemm
    path = work.scratch / "quantised.onnx"
    try:
        quantize_dynamic(
            model.model,
            str(path),
            op_types_to_quantize=["MatMul", "Attention"],
            per_channel=True,
            reduce_range=saturates(work.build_class),
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    except Exception as error:  # the quantiser raises ValueError, RuntimeError, AssertionError and ONNX Runtime's own
        raise Internal(f"the graph cannot be quantised: {' '.join(str(error).split())[:500]}") from error
    return optimise(onnx.load(str(path)).SerializeToString(), {}, work.scratch, quantised=True)
