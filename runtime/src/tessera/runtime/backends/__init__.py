"""The table of backends: name -> flavour and where it lives. Modules are imported when first wanted, so that a process of one flavour
never loads the libraries of another.

Other packages offer theirs as entry points of the group `tessera.backends`, named `FLAVOUR.NAME`: in whose runtimes it runs, and what
artifacts call it. The entry point makes it of a `BackendConfig`. It is imported by the first load that wants it, not by the zygote.
"""

from __future__ import annotations

import importlib
from typing import cast

from tessera.domain.errors import Unsupported
from tessera.plugins import plugins
from tessera.runtime.backends.interface import Backend, BackendConfig

FLAVOURS: dict[str, tuple[str, ...]] = {"ort": ("identity", "ort"), "aten": ("aten", "aoti")}
"""Flavour -> names of its backends."""

GROUP = "tessera.backends"
_MODULES = {
    "identity": "tessera.runtime.backends.identity.backend",
    "ort": "tessera.runtime.backends.ort.backend",
    "aten": "tessera.runtime.backends.aten.backend",
    "aoti": "tessera.runtime.backends.aoti.backend",
}


def preload(flavour: str) -> None:
    """Imports the backends of a flavour and calls their modules' `prepare`, which must leave nothing at work: no thread, no open
    library environment. What a zygote does before it forks.

    Raises:
        Unsupported: there is no such flavour, or its libraries are not installed.
    """
    for name in names(flavour):
        try:
            importlib.import_module(_MODULES[name]).prepare()
        except ImportError as error:
            raise Unsupported(f"flavour {flavour} cannot run here: {error}; install tessera-runtime[{flavour}]") from error


def names(flavour: str) -> tuple[str, ...]:
    """Raises Unsupported when there is no such flavour."""
    if flavour not in FLAVOURS:
        raise Unsupported(f"flavour {flavour!r}: there are {', '.join(FLAVOURS)}")
    return FLAVOURS[flavour]


def others() -> dict[str, str]:
    """Backends of other packages: name -> flavour. What is named otherwise than `FLAVOUR.NAME`, or as one of Tessera's own, is left out."""
    pairs = (point.partition(".") for point in plugins(GROUP))
    return {name: flavour for flavour, _, name in pairs if flavour in FLAVOURS and name and name not in _MODULES}


def create(name: str, config: BackendConfig) -> Backend:
    """The backend `name` in this process.

    Raises:
        Unsupported: there is none.
        FailedPrecondition: the package that offers it cannot be imported.
    """
    if name in _MODULES:
        return cast(Backend, importlib.import_module(_MODULES[name]).create(config))
    flavour = others().get(name)
    if flavour is None:
        raise Unsupported(f"backend {name!r}: there are {', '.join([*_MODULES, *others()])}")
    return cast(Backend, plugins(GROUP)[f"{flavour}.{name}"](config))
