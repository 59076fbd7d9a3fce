"""Aliases in etcd: set, promoted with a guard, gone back, removed. A move compares the alias and the model that it was decided from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from tessera import failpoint
from tessera.clock import Clock
from tessera.coord import keys
from tessera.coord.interface import Coordinator, Delete, ModRevisionIs, Put
from tessera.coord.reading import read_record, read_records
from tessera.coord.records import encode
from tessera.domain.errors import AlreadyExists, Conflict, FailedPrecondition, InvalidInput, ModelNotFound, NotFound, VersionNotFound
from tessera.domain.ids import ModelName, TrustDomain, VersionKey, VersionNumber
from tessera.domain.records import AliasRecord, ModelRecord, NodeRecord, ProfileRecord, VariantRecord, VersionRecord
from tessera.policy.variant.answering import answering_version
from tessera.registry.core.aliases import Place, gone_back, moved, place
from tessera.registry.core.promotion import Comparison, Guard, Measured, check_promotable, compare, refusals

T = TypeVar("T")
_ALIAS = b"alias"
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of one: the alias as it is now, and what was compared (nothing where it is new, or names that version already)."""

    alias: AliasRecord
    comparisons: tuple[Comparison, ...] = ()
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class _Target:
    """A model as it was read. New versions and deletions write it, so who compares its revision knows that its versions are the same."""

    model: ModelRecord
    revision: int


@dataclass(frozen=True, slots=True)
class _Seen:
    """An alias as it was read (None: there is none), the model that it stands for, and where it follows that, which version answers for
    the name (else 0)."""

    record: AliasRecord | None
    revision: int
    claim_revision: int
    of: _Target | None
    answering: VersionNumber


class Aliases:
    def __init__(self, coordinator: Coordinator, clock: Clock) -> None:
        self._coordinator = coordinator
        self._clock = clock

    async def set(self, domain: TrustDomain, alias: ModelName, name: ModelName, version: VersionNumber | None) -> None:
        """Makes or moves an alias, whatever it names now.

        Raises:
            AlreadyExists: a model has that name.
            InvalidInput: an alias of an alias.
            ModelNotFound, VersionNotFound: what it shall stand for does not exist.
        """
        for _ in range(_ATTEMPTS):
            seen, target = await self._seen(domain, alias), await self._target(domain, name)
            if version is not None:
                await self._version(VersionKey(domain, name, version))
            named = AliasRecord(alias, domain, name, version, self._clock.wall_s(), "set")
            try:
                await self._write(moved(seen.record, seen.answering, named), seen, target)
            except Conflict:
                continue
            return
        raise _contended(alias)

    async def promote(
        self, domain: TrustDomain, alias: ModelName, name: ModelName, version: VersionNumber | None, guard: Guard, *, force: bool
    ) -> Promotion:
        """Points an alias at a version (None: the model's latest) that is not worse than the one it names; a new alias names none.

        A lost race is decided anew, against what the alias names then. Done again after a lost answer it changes nothing.

        Raises:
            FailedPrecondition: it is worse, or nobody can say, and `force` is not given: names the figures and the limits.
            AlreadyExists, InvalidInput, ModelNotFound, VersionNotFound: as `set`.
        """
        for _ in range(_ATTEMPTS):
            seen, target = await self._seen(domain, alias), await self._target(domain, name)
            candidate = await self._measured(target.model, version or target.model.latest)
            number = candidate.version.version
            current = candidate
            comparisons: tuple[Comparison, ...] = ()
            if seen.record is not None and seen.of is not None:
                if (seen.record.model, seen.record.version) == (name, number):
                    return Promotion(seen.record, unchanged=True)
                current = await self._measured(seen.of.model, place(seen.record, seen.answering)[1])
            if current.key != candidate.key:
                comparisons = compare(candidate, current, await self._records(keys.nodes(domain), NodeRecord), guard)
            if not force:
                check_promotable(alias, candidate, current, comparisons)
            worse = refusals(comparisons)
            named = AliasRecord(alias, domain, name, number, self._clock.wall_s(), f"forced: {worse}" if worse else "promoted")
            record = moved(seen.record, seen.answering, named)
            await failpoint.async_hit("registry.before_promotion")
            try:
                await self._write(record, seen, target)
            except Conflict:
                continue
            await failpoint.async_hit("registry.after_promotion")
            return Promotion(record, comparisons)
        raise _contended(alias)

    async def roll_back(self, domain: TrustDomain, alias: ModelName) -> AliasRecord:
        """Points an alias at what it named before. Done twice it goes back twice.

        Raises:
            NotFound: there is no such alias. AlreadyExists: it is a model.
            FailedPrecondition: it named nothing before that is there still.
            Conflict: it was moved in the same moment. Not tried again: the other may have gone back already.
        """
        decided_from: int | None = None
        for _ in range(_ATTEMPTS):
            seen = await self._seen(domain, alias)
            if seen.record is None:
                raise NotFound(f"alias {alias!r} does not exist")
            if decided_from not in (None, seen.revision):
                raise Conflict(f"alias {alias!r} was moved by somebody else in the same moment: look at what it names now")
            decided_from = seen.revision
            targets: dict[ModelName, _Target] = {}
            there: set[Place] = set()
            for name in {step.model for step in seen.record.before}:
                if (found := await self._model(domain, name)) is not None:
                    targets[name] = found
                    there |= {(name, version.version) for version in await self._versions(domain, name)}
            record = gone_back(seen.record, seen.answering, there, self._clock.wall_s())
            try:
                await self._write(record, seen, targets[record.model])
            except Conflict:
                continue
            return record
        raise _contended(alias)

    async def delete(self, domain: TrustDomain, alias: ModelName) -> None:
        """Raises: NotFound; FailedPrecondition when it is a model."""
        for _ in range(_ATTEMPTS):
            claim = await self._coordinator.get(keys.name(domain, alias))
            if claim is None:
                raise NotFound(f"alias {alias!r} does not exist")
            if claim.value != _ALIAS:
                raise FailedPrecondition(f"{alias!r} is a model, not an alias")
            try:
                await self._coordinator.transact(
                    [ModRevisionIs(claim.key, claim.mod_revision)], [Delete(claim.key), Delete(keys.alias(domain, alias))]
                )
            except Conflict:
                continue
            return
        raise _contended(alias)

    async def _records(self, prefix: str, record_type: type[T]) -> list[T]:
        return await read_records(self._coordinator, record_type, prefix)

    async def _seen(self, domain: TrustDomain, alias: ModelName) -> _Seen:
        """Raises: AlreadyExists when a model has the name."""
        claim = await self._coordinator.get(keys.name(domain, alias))
        if claim is not None and claim.value != _ALIAS:
            raise AlreadyExists(f"{alias!r} is a model: an alias needs a name of its own")
        record, revision = await read_record(self._coordinator, AliasRecord, keys.alias(domain, alias))
        of = await self._model(domain, record.model) if record is not None else None
        follows = record is not None and record.version is None
        answering = await self._answering(of.model) if of is not None and follows else VersionNumber(0)
        return _Seen(record, revision, claim.mod_revision if claim is not None else 0, of, answering)

    async def _answering(self, model: ModelRecord) -> VersionNumber:
        domain = model.trust_domain
        versions = [each.version for each in await self._versions(domain, model.name)]
        variants = await self._records(f"{keys.variants(domain)}{model.name}/", VariantRecord)
        return answering_version(model, versions, variants, await self._records(keys.nodes(domain), NodeRecord))

    async def _model(self, domain: TrustDomain, name: ModelName) -> _Target | None:
        model, revision = await read_record(self._coordinator, ModelRecord, keys.model(domain, name))
        return None if model is None else _Target(model, revision)

    async def _target(self, domain: TrustDomain, name: ModelName) -> _Target:
        """Raises: ModelNotFound; InvalidInput when it is an alias."""
        found = await self._model(domain, name)
        if found is None:
            if await self._coordinator.get(keys.alias(domain, name)) is not None:
                raise InvalidInput("model", name, "is an alias; an alias stands for a model")
            raise ModelNotFound(name)
        return found

    async def _versions(self, domain: TrustDomain, name: ModelName) -> list[VersionRecord]:
        return await self._records(f"{keys.versions(domain)}{name}/", VersionRecord)

    async def _version(self, key: VersionKey) -> VersionRecord:
        """Raises: VersionNotFound."""
        record, _ = await read_record(self._coordinator, VersionRecord, keys.version(key))
        if record is None:
            known = await self._versions(key.trust_domain, key.model)
            raise VersionNotFound(key.model, key.version, ", ".join(map(str, sorted(version.version for version in known))))
        return record

    async def _measured(self, model: ModelRecord, number: VersionNumber) -> Measured:
        """Raises: VersionNotFound."""
        key = VersionKey(model.trust_domain, model.name, number)
        version = await self._version(key)
        variants = await self._records(keys.variants_of(key), VariantRecord)
        profiles = await self._records(keys.profiles_of(key), ProfileRecord)
        return Measured(model, version, tuple(variants), tuple(profiles))

    async def _write(self, record: AliasRecord, seen: _Seen, target: _Target) -> None:
        """Raises: Conflict: the alias, its name, the model that it stood for or the one that it shall was written meanwhile."""
        domain, alias, model = record.trust_domain, record.alias, target.model
        compares = [
            ModRevisionIs(keys.name(domain, alias), seen.claim_revision),
            ModRevisionIs(keys.alias(domain, alias), seen.revision),
            ModRevisionIs(keys.model(domain, model.name), target.revision),
        ]
        if seen.of is not None:
            compares.append(ModRevisionIs(keys.model(domain, seen.of.model.name), seen.of.revision))
        # The model's own record is written as it is, so that a deletion that saw no alias loses.
        writes = [
            Put(keys.name(domain, alias), _ALIAS),
            Put(keys.alias(domain, alias), encode(record)),
            Put(keys.model(domain, model.name), encode(model)),
        ]
        await self._coordinator.transact(compares, writes)


def _contended(alias: ModelName) -> Conflict:
    return Conflict(f"alias {alias!r} is written by others again and again; try again")
