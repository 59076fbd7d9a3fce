"""A catalogue with one model, and the words to change it."""

from dataclasses import replace
from typing import Any

from tessera.coord import keys
from tessera.domain.ids import DEFAULT_TRUST_DOMAIN, Generation, InstanceId, ModelName, NodeId, RuntimeId, VersionNumber
from tessera.domain.instance import InstanceState
from tessera.domain.records import AliasRecord, InstanceRecord, VariantState
from tessera.gateway.core.catalogue import Catalogue
from tessera.gateway.core.routes import slot_of_choice
from tessera.gateway.core.slots import InstanceSlot
from tessera.policy.variant.plain import PlainVariantPolicy
from tessera.testing.builders import a_model, a_node, a_variant, a_variant_key, a_version, an_instance

DOMAIN = DEFAULT_TRUST_DOMAIN


def put(catalogue: Catalogue, record: Any) -> str:
    """Puts a record under its real key, which is returned."""
    match type(record).__name__:
        case "ModelRecord":
            key = keys.model(DOMAIN, record.name)
        case "VersionRecord":
            key = keys.version(a_variant_key(record.model, record.version).version_key)
        case "VariantRecord":
            key = keys.variant(record.key)
        case "AliasRecord":
            key = keys.alias(DOMAIN, record.alias)
        case "ProfileRecord":
            key = keys.profile(record.variant, record.profile_class)
        case "NodeRecord":
            key = keys.node(DOMAIN, record.node_id)
        case "LoadRecord":
            key = keys.load(DOMAIN, record.node_id, record.instance_id)
        case _:
            key = keys.instance(DOMAIN, record.node_id, record.instance_id)
    catalogue.put(key, record)
    return key


def instance(name: str = "i1", generation: int = 1, **fields: Any) -> InstanceRecord:
    values: dict[str, Any] = {
        "instance_id": InstanceId(name), "generation": Generation(generation), "variant": a_variant_key(), "node_id": NodeId("node-0"),
        "state": InstanceState.READY, "runtime_id": RuntimeId("r1"),
    }  # fmt: skip
    return replace(an_instance(), **{**values, **fields})


def a_catalogue() -> Catalogue:
    """Model `digits`, version 1, variant `aten-fp32`, on one node."""
    made = Catalogue(DOMAIN, PlainVariantPolicy())
    put(made, replace(a_model(), latest=VersionNumber(1)))
    put(made, replace(a_version(), version=VersionNumber(1)))
    put(
        made,
        replace(
            a_variant(), key=a_variant_key(), backend="aten", flavour="aten", precision="fp32", state=VariantState.READY, build_class=None
        ),
    )
    put(made, node())
    return made


def node(name: str = "node-0", **fields: Any) -> Any:
    return replace(a_node(), node_id=NodeId(name), flavours=("aten", "ort"), **fields)


def picked(catalogue: Catalogue, name: str = "digits", version: str = "") -> str | None:
    choice = catalogue.choose(catalogue.route(name, version))
    slot = slot_of_choice(choice) if choice is not None else None
    return slot.instance_id if slot is not None else None


def usable(catalogue: Catalogue) -> tuple[InstanceSlot, ...]:
    """The instances of `aten-fp32` that may be sent to."""
    (candidate,) = catalogue.route("digits", "").ranking.meeting
    return candidate.activity.instances  # type: ignore[return-value] # instances are slots here


def alias(name: str, version: int | None = None, model: str = "digits") -> AliasRecord:
    return AliasRecord(ModelName(name), DOMAIN, ModelName(model), None if version is None else VersionNumber(version))
