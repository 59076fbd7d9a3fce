"""The options with which every command that calls a platform finds it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tessera.sdk import Client

EndpointOption = Annotated[
    str | None, typer.Option("--endpoint", help="HOST:PORT of the gateway (default: TESSERA_ENDPOINT, else the state folder's)")
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="the platform's folder (default: TESSERA_STATE, else the user's state home)")
]
DomainOption = Annotated[str, typer.Option("--trust-domain", help="whose models are meant")]


def connect(endpoint: str | None, state: Path | None, trust_domain: str = "default") -> Client:
    """A client; imported here so that `tessera --help` stays quick."""
    from tessera.sdk import Client

    return Client(endpoint, state=state, trust_domain=trust_domain)
