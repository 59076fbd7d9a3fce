"""`ort-fp32`: optimised once with everything on; attention fused where that agrees with the export."""

from __future__ import annotations

import logging

from tessera.runtime.agreement import disagreement
from tessera.runtime.baked_graph import Optimised, fuse_attention, optimise, runner
from tessera.runtime.recipes.base import Built, Work

_log = logging.getLogger(__name__)


def make(work: Work) -> Built:
    graph, tensors = _optimised(work)
    return Built(graph, tensors, work.artifact.precision, exact=True)


def _optimised(work: Work) -> Optimised:
    """With attention fused where that is possible and agrees with the export, else without."""
    fused = fuse_attention(work.graph, work.tensors)
    if fused is not None:
        work.progress("optimising with fused attention", 0.1)
        try:
            graph, tensors = optimise(*fused, work.scratch)
            run = runner(graph, {name: array for name, (array, _) in tensors.items()}, work.scratch)
            if all(disagreement(run(case.inputs), case.wanted) is None for case in work.cases):
                return graph, tensors
        except Exception as error:  # whatever ONNX Runtime makes of it: there is another way
            _log.info("attention cannot be fused: %s", error)
    work.progress("optimising", 0.3)
    return optimise(work.graph, work.tensors, work.scratch)
