"""The runtime on a real host, to be embedded: `open_engine` runs a node without a server, `open_images` pulls images.

What `__all__` lists is the public API, together with the messages of `crio_core.cri`; the rest may change at any time.
Names are loaded when they are first used: small helper processes import parts of this package and must stay small.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crio_io.container_log import ContainerLog
    from crio_io.engine import Engine, open_engine
    from crio_io.engine_options import EngineOptions, RuntimeOptions
    from crio_io.registry.blob import Progress
    from crio_io.registry.configuration import RegistryOptions
    from crio_io.unpacked import UnpackedImages, open_images

__all__ = [
    "ContainerLog",
    "Engine",
    "EngineOptions",
    "Progress",
    "RegistryOptions",
    "RuntimeOptions",
    "UnpackedImages",
    "open_engine",
    "open_images",
]

_HOMES = {
    "ContainerLog": "crio_io.container_log",
    "Engine": "crio_io.engine",
    "EngineOptions": "crio_io.engine_options",
    "Progress": "crio_io.registry.blob",
    "RegistryOptions": "crio_io.registry.configuration",
    "RuntimeOptions": "crio_io.engine_options",
    "UnpackedImages": "crio_io.unpacked",
    "open_engine": "crio_io.engine",
    "open_images": "crio_io.unpacked",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
