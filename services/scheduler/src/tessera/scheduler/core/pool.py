"""Nodes of a provider as values: what they are called, and what a container is made of that is a copy of a node agent's container.
Decides only; the providers in `adapters` carry out."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tessera.domain.errors import FailedPrecondition
from tessera.domain.ids import NodeId
from tessera.domain.labels import POOL_LABEL

MEMBER_LABEL = "tessera.node-pool.member"
"""On the containers and volumes of a pool's nodes: the node whose they are."""

_COPIED = ("Image", "Cmd", "Entrypoint", "User", "WorkingDir", "Healthcheck", "StopSignal")
_NOT_COPIED = {"Binds": None, "VolumesFrom": None, "Links": None, "PortBindings": None, "ContainerIDFile": ""}
_NAMELESS = frozenset({"bridge", "default", "host", "none"})
_MEBIBYTE = 1 << 20


def free_name(prefix: str, there: Collection[NodeId]) -> NodeId:
    """The first of PREFIX-0, PREFIX-1, ... that no node has."""
    return next(name for number in range(len(there) + 1) if (name := NodeId(f"{prefix}-{number}")) not in there)


def labels_of(pool: str, node_id: NodeId) -> dict[str, str]:
    return {POOL_LABEL: pool, MEMBER_LABEL: node_id}


def own_volumes(template: Mapping[str, Any]) -> list[str]:
    """Volumes that the template's container writes to: of each a node has one of its own. `template` is what the engine says of it."""
    return [mount["Name"] for mount in template["Mounts"] if mount["Type"] == "volume" and mount["RW"]]


def networks_of(template: Mapping[str, Any]) -> list[str]:
    """Where its copies are reached by the names of their nodes, at least one network.

    Raises: FailedPrecondition: it is in one in which containers have no names.
    """
    found = sorted(template["NetworkSettings"]["Networks"] or ())
    if not found or not _NAMELESS.isdisjoint(found):
        where = ", ".join(found) or template["HostConfig"]["NetworkMode"]
        raise FailedPrecondition(f"container {name_of(template)} is in network {where}, where nodes have no names: make one for it")
    return found


def name_of(template: Mapping[str, Any]) -> str:
    return str(template["Name"]).lstrip("/")


def copy_of(template: Mapping[str, Any], volumes: Mapping[str, Mapping[str, Any]], node_id: NodeId) -> dict[str, Any]:
    """The request for a container like the template's, limits and all, under the name of its node.

    Args:
        template: what the engine says of the template's container.
        volumes: what it says of each of `own_volumes`.

    Raises: FailedPrecondition: it has what two nodes cannot share, or see `networks_of`.
    """
    network = networks_of(template)[0]
    labels = labels_of(name_of(template), node_id)
    mounts = [_mount(mount, template, volumes, labels) for mount in template["Mounts"]]
    return {
        **{name: template["Config"].get(name) for name in _COPIED},
        "Env": _environment(template["Config"]["Env"] or (), {"TESSERA_NODE_ID": node_id, "TESSERA_ADVERTISE_HOST": node_id}),
        "Labels": labels,
        "HostConfig": {**template["HostConfig"], **_NOT_COPIED, "Mounts": mounts, "NetworkMode": network},
        "NetworkingConfig": {"EndpointsConfig": {network: {"Aliases": [node_id]}}},
    }


def vet_room(template: Mapping[str, Any], there: int, machine_bytes: int) -> None:
    """Raises: FailedPrecondition: the template's container, the nodes that are there and one more may take more memory than there is."""
    each, count = template["HostConfig"]["Memory"], there + 2
    if each * count > machine_bytes:
        raise FailedPrecondition(
            f"{count} nodes like {name_of(template)} may take {each // _MEBIBYTE} MiB each, more than the {machine_bytes // _MEBIBYTE} MiB "
            "of the engine's machine"
        )


def _environment(given: Iterable[str], own: Mapping[str, str]) -> list[str]:
    return [line for line in given if line.partition("=")[0] not in own] + [f"{name}={value}" for name, value in own.items()]


def _mount(
    mount: Mapping[str, Any], template: Mapping[str, Any], volumes: Mapping[str, Mapping[str, Any]], labels: Mapping[str, str]
) -> dict[str, Any]:
    target, writable = mount["Destination"], mount["RW"]
    if mount["Type"] == "volume" and writable:
        volume = volumes[mount["Name"]]
        driver = {"Name": volume["Driver"], "Options": volume["Options"] or {}}
        return {"Type": "volume", "Target": target, "VolumeOptions": {"Labels": labels, "DriverConfig": driver}}
    if mount["Type"] == "volume":
        return {"Type": "volume", "Target": target, "Source": mount["Name"], "ReadOnly": True}
    if mount["Type"] == "tmpfs":
        declared: Sequence[dict[str, Any]] = template["HostConfig"].get("Mounts") or ()
        return next(found for found in declared if found["Target"] == target)
    if writable and not target.endswith(".sock"):
        raise FailedPrecondition(
            f"container {name_of(template)} writes to {mount['Source']} of the machine ({target}), which two nodes cannot share: "
            "mount a volume there"
        )
    return {"Type": "bind", "Target": target, "Source": mount["Source"], "ReadOnly": not writable}
