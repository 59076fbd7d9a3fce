"""Shows what a transformation between two registered variants would do. Those that are carried out have plans of the scheduler's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tessera.domain.errors import FailedPrecondition, NotFound, VariantNotFound, VersionNotFound
from tessera.domain.ids import TrustDomain, parse_reference
from tessera.domain.records import MetaCostRecord, VariantRecord, VariantState
from tessera.domain.transformation import TransformationPlan
from tessera.policy.transform import registry
from tessera.policy.transform.by_size import planner_for
from tessera.policy.transform.costs import MetaCosts, costs_of
from tessera.policy.transform.plan import plan, priced
from tessera.policy.transform.structure import Program, structure_of
from tessera.policy.variant.answering import answering_version
from tessera.registry.core.recipes import ATEN
from tessera.registry.loops.catalogue import Catalogue
from tessera.registry.ports import Blobs


@dataclass(frozen=True, slots=True)
class Shown:
    """A plan between two variants, with how many operations each of them has, and by which costs. `record` None: these are assumed."""

    source: VariantRecord
    target: VariantRecord
    plan: TransformationPlan
    operations: tuple[int, int]
    costs: MetaCosts
    record: MetaCostRecord | None


class Planning:
    def __init__(self, catalogue: Catalogue, blobs: Blobs) -> None:
        self._catalogue = catalogue
        self._blobs = blobs

    async def show(self, domain: TrustDomain, source: str, target: str, planner: str = "", profile_class: str = "") -> Shown:
        """A plan by `planner`; "": by the one whose plans are carried out (`planner_for`). Those know graphs alone, for all siblings; this
        one knows digests, so that a weight that both have costs nothing, and may keep other operations for that. A name without a version
        stands for the answering version. What it takes by the costs of `profile_class`; "": those that were measured last.

        Raises:
            InvalidInput: a reference is malformed, or no planner has the name.
            NotFound: nothing was measured on the profile class.
            ModelNotFound, VersionNotFound, VariantNotFound: there is no such thing.
            FailedPrecondition: a variant is not ready, or is none that can be transformed; or the planner's library is missing.
            DataCorrupted, Unsupported: as `structure_of`.
        """
        named = registry.make(planner) if planner else None
        measured = await self._measured(domain, profile_class)
        costs = MetaCosts() if measured is None else costs_of(measured)
        records = [await self._variant(domain, reference) for reference in (source, target)]
        here, there = [await self._program(record) for record in records]
        chosen = planner_for(here.structure, there.structure) if named is None else named
        found = await asyncio.to_thread(plan, here, there, chosen, MetaCosts())
        operations = (len(here.structure.operations), len(there.structure.operations))
        return Shown(records[0], records[1], priced(found, costs), operations, costs, measured)

    async def _measured(self, domain: TrustDomain, profile_class: str) -> MetaCostRecord | None:
        known = await self._catalogue.meta_costs(domain)
        if not profile_class:
            return max(known, key=lambda record: record.measured_unix_s, default=None)
        found = next((record for record in known if record.profile_class == profile_class), None)
        if found is None:
            there = ", ".join(record.profile_class for record in known) or "none"
            raise NotFound(f"transformations on profile class {profile_class!r}: not measured; measured are {there}")
        return found

    async def _variant(self, domain: TrustDomain, text: str) -> VariantRecord:
        reference = parse_reference(text)
        known = await self._catalogue.model(domain, reference.name)
        aliased = next((alias.version for alias in known.aliases if alias.alias == reference.name), None)
        versions = [each.version for each in known.versions]
        version = reference.version or aliased
        if version is None:
            version = answering_version(known.model, versions, known.variants, await self._catalogue.nodes(domain))
        if version not in versions:
            raise VersionNotFound(known.model.name, version, ", ".join(map(str, versions)))
        name = reference.variant or ATEN
        there = {each.key.variant: each for each in known.variants if each.key.version == version}
        record = there.get(name)
        if record is None:
            raise VariantNotFound(f"{known.model.name}@{version}/{name}", ", ".join(sorted(there)))
        if record.state is not VariantState.READY:
            raise FailedPrecondition(f"variant {record.key} is {record.state}")
        if record.backend != "aten":
            raise FailedPrecondition(f"variant {record.key} is of backend {record.backend}: instances of aten alone become others")
        return record

    async def _program(self, record: VariantRecord) -> Program:
        if record.graph is None or record.artifact is None:
            raise FailedPrecondition(f"variant {record.key} has no graph")
        structure = await asyncio.to_thread(structure_of, await self._blobs.read(record.graph))
        digests = {ref.slot: ref.digest for ref in (await self._blobs.artifact(record.artifact)).tensors}
        return Program(structure, tuple(digests[tensor.name] for tensor in structure.tensors))
