"""Where the platform is: given, from the environment, from a state folder, or the default ports of this machine."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from tessera.domain.errors import FailedPrecondition, InvalidInput

DEFAULT_ENDPOINT = "127.0.0.1:8001"
ADMIN_OFFSET = 2
"""The admin port is two above the gRPC port."""


@dataclass(frozen=True)
class Target:
    """`endpoint` answers inference, `admin_endpoint` everything else; the token is for the latter."""

    endpoint: str
    admin_endpoint: str
    token: str | None = None


def _admin_of(endpoint: str) -> str:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInput("endpoint", endpoint, "must be HOST:PORT")
    return f"{host}:{int(port) + ADMIN_OFFSET}"


def state_folder(state: str | os.PathLike[str] | None = None) -> Path:
    """The state folder that is meant: given, `TESSERA_STATE`, else `tessera` in the user's state home."""
    chosen = state if state is not None else os.environ.get("TESSERA_STATE")
    if chosen is not None:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "tessera"


def _from_state(folder: Path) -> dict[str, Target] | None:
    """The gateways of a recorded platform by trust domain, the first one's under "" as well."""
    try:
        recorded = json.loads((folder / "platform.json").read_text())
        token = Path(recorded["token_file"]).read_text().strip()
        doors = {"": recorded, **recorded["domains"]}
        return {name: Target(door["endpoint"], door["admin_endpoint"], token) for name, door in doors.items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise FailedPrecondition(f"{folder / 'platform.json'} cannot be read: {error}") from error


def find_target(
    endpoint: str | None = None,
    *,
    admin_endpoint: str | None = None,
    token: str | None = None,
    state: str | os.PathLike[str] | None = None,
    trust_domain: str = "",
) -> Target:
    """Finds the platform: arguments win over `TESSERA_ENDPOINT`, `TESSERA_ADMIN_ENDPOINT`, `TESSERA_TOKEN`, these over the state folder, of
    which the gateway of the trust domain is taken, the first one where it has none of that domain.

    Raises:
        InvalidInput: an endpoint is not HOST:PORT. FailedPrecondition: the state folder's record is needed and cannot be read.
    """
    endpoint = endpoint or (None if state is not None else os.environ.get("TESSERA_ENDPOINT"))
    admin_endpoint = admin_endpoint or os.environ.get("TESSERA_ADMIN_ENDPOINT")
    token = token or os.environ.get("TESSERA_TOKEN")
    doors = None if endpoint is not None and token is not None else _from_state(state_folder(state))
    if endpoint is None:
        found = doors.get(trust_domain, doors[""]) if doors is not None else None
        if state is not None and found is None:
            raise FailedPrecondition(f"no platform is recorded in {state_folder(state)}; start one with 'tessera up'")
        found = found or Target(DEFAULT_ENDPOINT, _admin_of(DEFAULT_ENDPOINT))
        return Target(found.endpoint, admin_endpoint or found.admin_endpoint, token or found.token)
    admin = admin_endpoint or _admin_of(endpoint)
    if doors is not None:
        token = token or next((door.token for door in doors.values() if door.admin_endpoint == admin), None)
    return Target(endpoint, admin, token)
