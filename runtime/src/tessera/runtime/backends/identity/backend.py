"""`INPUT0` comes back as `OUTPUT0`: for probing the way through the platform without a model."""

from __future__ import annotations

from collections.abc import Mapping

from tessera.domain.artifact import Artifact
from tessera.domain.ids import Digest
from tessera.runtime.backends.interface import BackendConfig, BlobSource, Tensor, refuse_unknown_options


class _Identity:
    inline = True

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"OUTPUT0": inputs["INPUT0"]}

    def close(self) -> None:
        """Holds nothing."""


class IdentityBackend:
    name = "identity"
    flavour = "ort"

    def warm(self) -> None:
        """Nothing to warm."""

    def load(self, artifact: Artifact, digest: Digest, blobs: BlobSource) -> _Identity:
        refuse_unknown_options(artifact)
        return _Identity()

    def release(self) -> None:
        """Keeps nothing."""


def prepare() -> None:
    """Nothing beyond the import is worth doing before a fork."""


def create(config: BackendConfig) -> IdentityBackend:
    return IdentityBackend()
