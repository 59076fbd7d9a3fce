"""AOTInductor's libraries over mapped tensors: compiled once on a node, opened in milliseconds, bound without a copy.

The package is written where the loader can open it and removed at once: the loader unpacks the library for itself.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tessera import failpoint
from tessera.domain.artifact import Artifact
from tessera.domain.errors import DataCorrupted, FailedPrecondition, Internal, Unsupported
from tessera.domain.ids import Digest
from tessera.runtime.backends.aoti.package import Header, unpack
from tessera.runtime.backends.aten.values import expect_read_only, inference, to_tensor, to_torch
from tessera.runtime.backends.interface import BackendConfig, BlobSource, Donor, Tensor, refuse_another_graph, refuse_unknown_options

_MODEL = "model"
_RUNNERS = 1
_ANY_DEVICE = -1

Constants = dict[str, tuple[npt.NDArray[Any], str]]
"""By the library's name: the array, and its type as Open Inference names it."""


class AotiLoaded:
    inline = False

    def __init__(self, library: Any, header: Header, constants: Constants) -> None:
        self._library = library
        self._header = header
        self._constants = constants  # the library only points at them

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        library = self._library
        if library is None:
            raise Internal("the program is closed")
        self._header.check([inputs[name].array.shape for name in self._header.inputs])
        with inference():
            answers = library.run([to_torch(inputs[name].array, inputs[name].datatype) for name in self._header.inputs])
            return {name: to_tensor(name, value) for name, value in zip(self._header.outputs, answers, strict=True)}

    def becomes(self, constants: Constants) -> AotiLoaded:
        """The same library with other constants; this one is closed by it. Raises: RuntimeError: half of it may be done."""
        library = self._library
        try:
            failpoint.hit("runtime.replace")
            _given(library, constants)
        finally:
            self.close()
        return AotiLoaded(library, self._header, constants)

    @property
    def open(self) -> bool:
        return self._library is not None

    def close(self) -> None:
        self._library = None
        self._constants = {}


class AotiBackend:
    name = "aoti"
    flavour = "aten"

    def __init__(self, config: BackendConfig) -> None:
        expect_read_only()
        self._config = config
        torch.set_num_threads(config.threads)

    def warm(self) -> None:
        """The flavour's other backend warms torch."""

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> AotiLoaded:
        refuse_unknown_options(artifact)
        header, package = unpack(blobs.graph())
        if header.torch != str(torch.__version__):
            raise FailedPrecondition(f"the artifact was compiled for torch {header.torch}; here is {torch.__version__}")
        constants = _constants(artifact, header, blobs)
        with tempfile.NamedTemporaryFile(dir=self._config.folder, suffix=".pt2") as file:
            file.write(package)
            file.flush()
            try:
                library = torch._C._aoti.AOTIModelPackageLoader(file.name, _MODEL, False, _RUNNERS, _ANY_DEVICE)
                if set(library.get_constant_fqns()) != set(constants):
                    raise DataCorrupted(
                        f"constants of the library are {sorted(library.get_constant_fqns())[:5]}..., not what the graph says"
                    )
                _given(library, constants)
            except RuntimeError as error:
                raise Unsupported(f"AOTInductor's package cannot be opened: {' '.join(str(error).split())[:500]}") from error
        return AotiLoaded(library, header, constants)

    def transform(self, donor: Donor, delta: bytes, artifact: Artifact, digest: Digest, blobs: BlobSource) -> AotiLoaded:
        """See `TransformingBackend`. Replace alone: the library's constants are swapped for the artifact's."""
        refuse_unknown_options(artifact)
        refuse_another_graph(donor, artifact)
        live = donor.loaded
        if not isinstance(live, AotiLoaded) or not live.open:
            raise FailedPrecondition("the donor is parked: its library is closed")
        constants = _constants(artifact, unpack(blobs.graph())[0], blobs)
        donor.spent = True
        try:
            return live.becomes(constants)
        except RuntimeError as error:
            raise Internal(f"AOTInductor's constants cannot be swapped: {' '.join(str(error).split())[:500]}") from error

    def release(self) -> None:
        """PyTorch gives CPU memory back by itself; the heap is trimmed by the caller."""


def prepare() -> None:
    """Nothing beyond the import is worth doing before a fork."""


def create(config: BackendConfig) -> AotiBackend:
    return AotiBackend(config)


def _constants(artifact: Artifact, header: Header, blobs: BlobSource) -> Constants:
    """By the library's names, on mapped memory. Raises: DataCorrupted: they do not fit."""
    _check(artifact, header)
    arrays = blobs.tensors()
    return {name: (arrays[constant.slot], constant.dtype) for name, constant in header.constants.items()}


def _given(library: Any, constants: Constants) -> None:
    """The library never lets go of the tensors that it gets: these own nothing, so that mappings end with those who have them."""
    tensors = {name: to_torch(_unowned(array), dtype) for name, (array, dtype) in constants.items()}
    library.load_constants(tensors, False, True, True)


def _unowned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same memory; it must outlive whoever reads it by this array."""
    if not array.size:
        return array.copy()
    memory = (ctypes.c_ubyte * array.nbytes).from_address(array.__array_interface__["data"][0])
    return np.frombuffer(memoryview(memory), array.dtype).reshape(array.shape)


def _check(artifact: Artifact, header: Header) -> None:
    references = {ref.slot: ref for ref in artifact.tensors}
    for constant in header.constants.values():
        ref = references.pop(constant.slot, None)
        if ref is None:
            raise DataCorrupted(f"tensor {constant.slot}: the graph wants it and the artifact does not have it")
        if (ref.dtype, ref.shape) != (constant.dtype, constant.shape):
            has, wants = f"{ref.dtype} {list(ref.shape)}", f"{constant.dtype} {list(constant.shape)}"
            raise DataCorrupted(f"tensor {constant.slot}: the artifact has {has}, the graph wants {wants}")
    if references:
        raise DataCorrupted(f"tensor {next(iter(references))}: the artifact has it and the graph does not name it")
    for kind, specs, names in (("input", artifact.signature.inputs, header.inputs), ("output", artifact.signature.outputs, header.outputs)):
        if sorted(spec.name for spec in specs) != sorted(names):
            raise DataCorrupted(f"{kind}s of the graph are {list(names)}, the signature says {[spec.name for spec in specs]}")
