"""`ort-int8`: static, QDQ, weights per channel. For convolutions; ranges of activations come from a calibration set.

Opened prepacked: unpacked int8 convolutions lay their weights out anew at every run and are slower than fp32 ones (resnet18, two threads
of an AVX-512 VNNI machine: 42 ms unpacked, 5 ms prepacked, fp32 16 ms).
"""

from __future__ import annotations

import onnx

from tessera.domain.artifact import PREPACKED
from tessera.domain.errors import Internal
from tessera.runtime.baked_graph import fold, optimise
from tessera.runtime.recipes.base import Built, Work
from tessera.runtime.recipes.calibration import Reader
from tessera.runtime.recipes.isa import saturates


def make(work: Work) -> Built:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    calibration = work.calibrate()
    work.progress("folding", 0.1)
    folded = fold(work.graph, work.tensors, work.scratch)
    work.progress(f"quantising, {calibration.words.partition(':')[0]}", 0.2)
    path = work.scratch / "quantised.onnx"
    try:
        quantize_static(
            folded,
            str(path),
            Reader(calibration.requests),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=saturates(work.build_class),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    except Exception as error:  # the quantiser raises ValueError, RuntimeError, AssertionError and ONNX Runtime's own
        raise Internal(f"the graph cannot be quantised: {' '.join(str(error).split())[:500]}") from error
    work.progress("optimising", 0.6)
    graph, tensors = optimise(onnx.load(str(path)).SerializeToString(), {}, work.scratch, quantised=True)
    return Built(graph, tensors, "int8", exact=False, options=(PREPACKED,), notes=calibration.words)
