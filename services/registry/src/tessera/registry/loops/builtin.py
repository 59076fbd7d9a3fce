"""The built-in model `identity` (docs/seams.md): for probing, served by a runtime like any other."""

from __future__ import annotations

from tessera.domain.artifact import Artifact
from tessera.domain.ids import TrustDomain, VariantKey, VersionNumber
from tessera.domain.records import ModelRecord, VariantRecord, VariantState, VersionRecord
from tessera.domain.signature import ANY_DATATYPE, Signature, TensorSpec
from tessera.registry.core.recipes import IDENTITY
from tessera.registry.core.source import BUILT_IN
from tessera.registry.loops.catalogue import Catalogue, NewVersion
from tessera.registry.ports import Blobs
from tessera.tensorstore.artifact import digest_of, encode

SIGNATURE = Signature(
    inputs=(TensorSpec("INPUT0", ANY_DATATYPE, (), any_rank=True),),
    outputs=(TensorSpec("OUTPUT0", ANY_DATATYPE, (), any_rank=True),),
    batched=False,
)


async def ensure_built_in(domain: TrustDomain, catalogue: Catalogue, blobs: Blobs, now_unix_s: float, max_batch: int) -> None:
    """Writes the artifact (it has no blobs) and the records of `identity` where they are missing or differ."""
    artifact = Artifact("identity", "any", "", None, None, (), SIGNATURE, None, max_batch)
    data = encode(artifact)
    digest = await blobs.put_bytes(data)
    version = VersionNumber(1)
    known = {v.model: v for v in await catalogue.versions(domain)}.get(BUILT_IN)
    created = known.created_unix_s if known is not None else now_unix_s
    variant = VariantRecord(
        key=VariantKey(domain, BUILT_IN, version, IDENTITY),
        backend="identity",
        flavour="ort",
        precision="any",
        state=VariantState.READY,
        max_batch=artifact.max_batch,
        artifact=digest,
    )
    await catalogue.ensure(
        NewVersion(
            ModelRecord(BUILT_IN, domain, "", "", None, version, created),
            VersionRecord(BUILT_IN, domain, version, SIGNATURE, "builtin", digest_of(data), created),
            (variant,),
        )
    )
