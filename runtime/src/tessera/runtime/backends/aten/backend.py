"""PyTorch without modules: a flat list of ATen operations bound to mapped tensors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch

from tessera.domain.artifact import AUTOCAST, Artifact
from tessera.domain.errors import DataCorrupted, FailedPrecondition, Internal
from tessera.domain.ids import Digest
from tessera.runtime.backends.aten.program import Plan, execute, read_plan
from tessera.runtime.backends.aten.transform import read_delta, transform
from tessera.runtime.backends.aten.values import expect_read_only, inference, to_tensor, to_torch
from tessera.runtime.backends.interface import BackendConfig, BlobSource, Donor, Tensor, refuse_another_graph, refuse_unknown_options

_in_bfloat16 = partial(torch.autocast, "cpu", torch.bfloat16, cache_enabled=False)


class AtenLoaded:
    inline = False

    def __init__(self, plan: Plan, bound: list[Any], autocast: bool) -> None:
        self.plan: Plan | None = plan
        """None once it is closed."""
        self._bound = bound
        self._arithmetic = _in_bfloat16 if autocast else nullcontext

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        plan = self.plan
        if plan is None:
            raise Internal("the program is closed")
        with inference(), self._arithmetic():
            given = {name: to_torch(tensor.array, tensor.datatype) for name, tensor in inputs.items()}
            answers = execute(plan, self._bound, given)
            return {port.name: to_tensor(port.name, value) for port, value in zip(plan.outputs, answers, strict=True)}

    def close(self) -> None:
        self.plan = None
        self._bound = []


class AtenBackend:
    name = "aten"
    flavour = "aten"

    def __init__(self, config: BackendConfig) -> None:
        expect_read_only()
        torch.set_num_threads(config.threads)

    def warm(self) -> None:
        """The first convolution of a process costs 8-14 ms more than the next."""
        with torch.inference_mode():
            image = torch.zeros(1, 8, 8, 8)
            weight = torch.zeros(8, 8, 3, 3)
            one = torch.ones(8)
            image = torch.relu(torch.batch_norm(torch.conv2d(image, weight, padding=1), one, one, one, one, False, 0.0, 1e-5, False))
            image = torch.nn.functional.linear(image, torch.zeros(8, 8), one)
            torch.nn.functional.layer_norm(image, [8])
            torch.nn.functional.scaled_dot_product_attention(image, image, image)

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> AtenLoaded:
        refuse_unknown_options(artifact, AUTOCAST)
        return _bound(artifact, read_plan(blobs.graph()), blobs)

    def transform(self, donor: Donor, delta: bytes, artifact: Artifact, digest: Digest, blobs: BlobSource) -> AtenLoaded:
        """See `TransformingBackend`."""
        refuse_unknown_options(artifact, AUTOCAST)
        live = (donor.loaded.plan if isinstance(donor.loaded, AtenLoaded) else None) or read_plan(donor.blobs.graph())
        if not delta:
            refuse_another_graph(donor, artifact)
            return _bound(artifact, live, blobs)
        wanted = read_delta(delta)
        ends = [each.graph.digest if each.graph is not None else "" for each in (donor.artifact, artifact)]
        if ends != [wanted.source, wanted.target]:
            raise FailedPrecondition(f"the delta is from graph {wanted.source} to {wanted.target}: these are {ends[0]} and {ends[1]}")
        # of one graph nothing changes but what is bound
        return _bound(artifact, live if wanted.source == wanted.target else transform(live, wanted), blobs)

    def release(self) -> None:
        """PyTorch gives CPU memory back by itself; the heap is trimmed by the caller."""


def prepare() -> None:
    """Nothing beyond the import is worth doing before a fork."""


def create(config: BackendConfig) -> AtenBackend:
    return AtenBackend(config)


def _bound(artifact: Artifact, plan: Plan, blobs: BlobSource) -> AtenLoaded:
    """The plan with the artifact's tensors in their slots. Raises: DataCorrupted: they do not fit; names the first."""
    arrays = blobs.tensors()
    _check_signature(artifact, plan)
    references = {ref.slot: ref for ref in artifact.tensors}
    bound: list[Any] = [None] * plan.slots
    for tensor in plan.tensors:
        ref = references.get(tensor.name)
        if ref is None:
            raise DataCorrupted(f"tensor {tensor.name}: the graph wants it and the artifact does not have it")
        if ref.dtype != tensor.dtype or list(ref.shape) != tensor.shape:
            raise DataCorrupted(
                f"tensor {tensor.name}: the artifact has {ref.dtype} {list(ref.shape)}, the graph wants {tensor.dtype} {tensor.shape}"
            )
        bound[tensor.slot] = to_torch(arrays[tensor.name], tensor.dtype)
    if len(plan.tensors) != len(references):
        unread = sorted(set(references) - {tensor.name for tensor in plan.tensors})
        raise DataCorrupted(f"tensor {unread[0] if unread else ''}: the artifact has it and the graph does not name it")
    return AtenLoaded(plan, bound, AUTOCAST in artifact.options)


def _check_signature(artifact: Artifact, plan: Plan) -> None:
    for kind, specs, ports in (("input", artifact.signature.inputs, plan.inputs), ("output", artifact.signature.outputs, plan.outputs)):
        if [spec.name for spec in specs] != [port.name for port in ports]:
            raise DataCorrupted(
                f"{kind}s of the graph are {[port.name for port in ports]}, the signature says {[spec.name for spec in specs]}"
            )
