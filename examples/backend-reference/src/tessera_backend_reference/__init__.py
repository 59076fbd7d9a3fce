"""ONNX graphs run by ONNX's reference implementation: slow, and a second opinion. Weights stay where they are mapped."""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx.reference import ReferenceEvaluator

from tessera.domain.artifact import Artifact
from tessera.domain.ids import Digest
from tessera.runtime.backends.interface import BackendConfig, BlobSource, Tensor


class Loaded:
    inline = False

    def __init__(self, evaluator: Any, weights: dict[str, Any], outputs: dict[str, str]) -> None:
        self._evaluator, self._weights, self._outputs = evaluator, weights, outputs

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        answers = self._evaluator.run(list(self._outputs), self._weights | {name: tensor.array for name, tensor in inputs.items()})
        return {name: Tensor(datatype, array) for (name, datatype), array in zip(self._outputs.items(), answers, strict=True)}

    def close(self) -> None:
        self._evaluator, self._weights = None, {}


class ReferenceBackend:
    name, flavour = "reference", "ort"

    def __init__(self, config: BackendConfig) -> None: ...

    def warm(self) -> None: ...

    def release(self) -> None: ...

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> Loaded:
        model = onnx.load_model_from_string(blobs.graph())
        for tensor in [one for one in model.graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]:
            model.graph.initializer.remove(tensor)  # becomes an input that is given with every run
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        return Loaded(ReferenceEvaluator(model), dict(blobs.tensors()), {spec.name: spec.datatype for spec in artifact.signature.outputs})
