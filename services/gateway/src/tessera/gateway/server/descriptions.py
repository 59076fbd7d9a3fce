"""A model's signature in the words of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.api.open_inference import inference_pb2 as pb
from tessera.domain.signature import ANY_DATATYPE, Signature, TensorSpec

PLATFORM = "tessera_variants"
"""<project>_<format>: which build answers is decided per request."""

PROBE_DATATYPE = "FP32"
"""What a tensor that takes every datatype is shown as: the protocol has no word for it, and clients that make up inputs need one."""

_DATA_TYPES = {
    "BOOL": pb.TYPE_BOOL, "UINT8": pb.TYPE_UINT8, "UINT16": pb.TYPE_UINT16, "UINT32": pb.TYPE_UINT32, "UINT64": pb.TYPE_UINT64,
    "INT8": pb.TYPE_INT8, "INT16": pb.TYPE_INT16, "INT32": pb.TYPE_INT32, "INT64": pb.TYPE_INT64, "FP16": pb.TYPE_FP16,
    "FP32": pb.TYPE_FP32, "FP64": pb.TYPE_FP64, "BYTES": pb.TYPE_STRING, "BF16": pb.TYPE_BF16,
}  # fmt: skip


def metadata(name: str, versions: Sequence[int], signature: Signature) -> pb.ModelMetadataResponse:
    """`shape` includes the batch dimension (-1), as perf_analyzer expects of a batching model."""
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=name,
        versions=[str(number) for number in versions],
        platform=PLATFORM,
        inputs=[tensor(name=spec.name, datatype=_datatype(spec), shape=_shape(spec)) for spec in signature.inputs],
        outputs=[tensor(name=spec.name, datatype=_datatype(spec), shape=_shape(spec)) for spec in signature.outputs],
    )


def config(name: str, signature: Signature, max_batch: int) -> pb.ModelConfig:
    """`dims` exclude the batch dimension where max_batch_size > 0. A signature that takes every rank is not shown as batched."""
    batched = signature.batched and not any(spec.any_rank for spec in (*signature.inputs, *signature.outputs))
    first = 1 if batched else 0
    return pb.ModelConfig(
        name=name,
        platform=PLATFORM,
        backend="tessera",
        max_batch_size=max_batch if batched else 0,
        input=[pb.ModelInput(name=s.name, data_type=_DATA_TYPES[_datatype(s)], dims=_shape(s)[first:]) for s in signature.inputs],
        output=[pb.ModelOutput(name=s.name, data_type=_DATA_TYPES[_datatype(s)], dims=_shape(s)[first:]) for s in signature.outputs],
        dynamic_batching=pb.ModelDynamicBatching() if batched else None,
    )


def index_row(model: str, version: int, reason: str) -> pb.RepositoryIndexResponse.ModelIndex:
    state = "UNAVAILABLE" if reason else "READY"
    return pb.RepositoryIndexResponse.ModelIndex(name=model, version=str(version), state=state, reason=reason)


def _datatype(spec: TensorSpec) -> str:
    return PROBE_DATATYPE if spec.datatype == ANY_DATATYPE else spec.datatype


def _shape(spec: TensorSpec) -> list[int]:
    return [-1] if spec.any_rank else list(spec.shape)
