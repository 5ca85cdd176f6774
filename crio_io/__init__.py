"""The runtime on a real host, to be embedded: `open_engine` runs a node without a server.

What `__all__` lists is the public API, together with the messages of `crio_core.cri`; the rest may change at any time.
Names are loaded when they are first used: small helper processes import parts of this package and must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crio_io.container_log import ContainerLog
    from crio_io.engine import Engine, EngineOptions, RuntimeOptions, open_engine
    from crio_io.registry.configuration import RegistryOptions

__all__ = ["ContainerLog", "Engine", "EngineOptions", "RegistryOptions", "RuntimeOptions", "open_engine"]

_HOMES = {
    "ContainerLog": "crio_io.container_log",
    "Engine": "crio_io.engine",
    "EngineOptions": "crio_io.engine",
    "RegistryOptions": "crio_io.registry.configuration",
    "RuntimeOptions": "crio_io.engine",
    "open_engine": "crio_io.engine",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
