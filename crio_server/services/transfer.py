"""Images in and out of files: a service of our own beside the CRI's, which has no calls for that.

`crio.v1.Images` has two methods, `Load` and `Save`; requests and answers are google.protobuf.Struct, with the members
that the methods below read and write. Paths are of the server's file system: client and server share a machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import Struct
from grpclib.const import Cardinality, Handler

from crio_core.errors import invalid
from crio_io.engine import Engine
from crio_server.lean import give_back_soon

SERVICE = "crio.v1.Images"
LOAD = f"/{SERVICE}/Load"
SAVE = f"/{SERVICE}/Save"


class ImagesBase:
    """What a generated base class would be."""

    @staticmethod
    def __mapping__(methods: Any) -> Mapping[str, Handler]:
        return {
            LOAD: Handler(methods.Load, Cardinality.UNARY_UNARY, Struct, Struct),
            SAVE: Handler(methods.Save, Cardinality.UNARY_UNARY, Struct, Struct),
        }


class Transfer:
    """Loads and saves images.

    Args:
        engine: The running node.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Load(self, request: Struct) -> Struct:
        """`path`, and `name` for an image that has none; answers `references`."""
        words = _read(request, ("path",), ("name",))
        try:
            loaded = await self._engine.load(_path(words["path"]), words["name"])
        finally:
            give_back_soon()
        return packed({"references": list(loaded)})

    async def Save(self, request: Struct) -> Struct:
        """`image`, `path` and `format`; answers `id`."""
        words = _read(request, ("image", "path", "format"), ())
        saved = await self._engine.save(words["image"], _path(words["path"]), words["format"])
        return packed({"id": saved})


def packed(members: Mapping[str, Any]) -> Struct:
    """A message with these members."""
    from google.protobuf.json_format import ParseDict  # 0.9 MB, and not every server is asked for this

    return ParseDict(dict(members), Struct())


def members_of(message: Struct) -> dict[str, Any]:
    """The members of a message."""
    from google.protobuf.json_format import MessageToDict

    return dict(MessageToDict(message))


def _read(request: Struct, needed: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, str]:
    given = members_of(request)
    for name in given:
        if name not in (*needed, *optional):
            raise invalid(name[:80], "a member", f"one of {', '.join((*needed, *optional))}")
    words = {}
    for name in (*needed, *optional):
        value = given.get(name, "")
        if not isinstance(value, str) or (name in needed and not value):
            raise invalid(name, value, "a string that is not empty")
        words[name] = value
    return words


def _path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise invalid("path", text[:200], "an absolute path")
    return Path(text)
