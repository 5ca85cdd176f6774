"""What keeps a server small: what libraries would load and it never uses, and what malloc would keep for later."""

import asyncio
import ctypes
import gc
import importlib
import sys
from types import ModuleType
from typing import Any

REST_S = 0.5
"""How long after a piece of work memory is looked after: when its answers are sent and its last buffers are freed."""
_SELDOM = (
    "google.protobuf.internal.python_message",  # Messages in pure Python: 1.1 MB, of no use beside those in C.
    *("bz2", "lzma"),  # shutil tries whether they are there.
    *("certifi", "idna", "mimetypes", "zstandard"),  # httpx has them at hand: 1 MB with the first pull.
)
_HARMLESS = frozenset({"__cached__", "__file__", "__warningregistry__"})
"""Looked at by what goes through all modules, and no sign of use."""
_M_ARENA_MAX = -8  # malloc.h
_LIBC = ctypes.CDLL(None)


def stay_small() -> None:
    """Set up this process to be a server's, before anything that serves is imported or a thread is started."""
    # httpcore loads trio wherever it is installed: 2 MB with the first pull, which a server on asyncio never uses.
    sys.modules.setdefault("trio", None)  # type: ignore[arg-type]
    for name in _SELDOM:
        load_when_used(name)
    # Otherwise each thread that runs for a moment gets a heap of its own.
    if hasattr(_LIBC, "mallopt"):
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def load_when_used(name: str) -> None:
    """Have `import` give a module that is loaded when it is first asked for something."""
    if name in sys.modules:
        return
    later = ModuleType(name)

    def attribute(wanted: str) -> Any:
        if wanted in _HARMLESS:
            raise AttributeError(wanted)
        if sys.modules.get(name) is later:
            del sys.modules[name]
        module = importlib.import_module(name)
        vars(later).update(vars(module))
        return getattr(module, wanted)

    vars(later)["__getattr__"] = attribute
    sys.modules[name] = later


def settle() -> None:
    """End a start, when its first callers have been answered: what lives now does so as long as the process."""
    gc.collect()
    gc.freeze()  # The collector need not look at it again.
    gc.enable()
    give_back()


def give_back() -> None:
    """Return freed memory to the kernel, also from between what is in use; a tenth of a millisecond."""
    if hasattr(_LIBC, "malloc_trim"):  # glibc has it
        _LIBC.malloc_trim(0)


def give_back_soon() -> None:
    """Do so when the work that ends now is over; to be called in the server's event loop."""
    asyncio.get_running_loop().call_later(REST_S, give_back)
