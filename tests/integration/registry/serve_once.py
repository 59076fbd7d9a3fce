"""Runs one artifact with the runtime's backend, in a process of its own: STORE ARTIFACT INPUTS.npz OUTPUTS.npz"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tessera.domain.ids import Digest
from tessera.runtime.backends import create
from tessera.runtime.backends.interface import BackendConfig, Tensor
from tessera.runtime.blobs import ArtifactBlobs
from tessera.tensorstore.artifact import decode
from tessera.tensorstore.mapping import BlobMap


def main(store: Path, digest: str, inputs: str, outputs: str) -> None:
    artifact = decode((store / "blobs" / digest).read_bytes())
    backend = create(artifact.backend, BackendConfig(1, store))
    loaded = backend.load(artifact, Digest(digest), ArtifactBlobs(store, artifact, BlobMap(), private=False, verify=True))
    with np.load(inputs) as given:
        found = loaded.run({spec.name: Tensor(spec.datatype, given[spec.name]) for spec in artifact.signature.inputs})
    np.savez(outputs, **{name: tensor.array for name, tensor in found.items()})
    loaded.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:5])
