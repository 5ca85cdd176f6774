"""Credentials, kept out of the core: the node sees a handle, which may be recorded, never what it stands for."""

import hashlib
from secrets import token_bytes

from crio_core.cri import AuthConfig
from crio_core.errors import Code, OperationError

KEPT_MAX = 1024
"""Credentials remembered at one time: a pull goes on without its caller, so they outlast the call."""

_NOBODY = AuthConfig()


class Vault:
    """The credentials that were used last, by handle.

    Equal credentials have equal handles, so that pulls of one image with the same rights are one pull. The handle is
    keyed by chance that dies with the process: it cannot be turned back, nor compared between two servers.
    """

    def __init__(self) -> None:
        self._key = token_bytes(32)
        self._kept: dict[str, AuthConfig] = {}

    def keep(self, auth: AuthConfig) -> str:
        """The handle of these credentials; that of none is empty."""
        if auth == _NOBODY:
            return ""
        handle = hashlib.blake2b(repr(auth).encode(), key=self._key, digest_size=16).hexdigest()
        self._kept.pop(handle, None)
        self._kept[handle] = auth
        while len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        return handle

    def get(self, handle: str) -> AuthConfig:
        """The credentials of a handle; none for the empty handle.

        Raises:
            OperationError: UNAVAILABLE: they were forgotten. To go on without them would pull something else.
        """
        if not handle:
            return _NOBODY
        auth = self._kept.pop(handle, None)
        if auth is None:
            message = "the credentials of this pull were forgotten: too many others came since; ask again"
            raise OperationError(Code.UNAVAILABLE, "CREDENTIALS_FORGOTTEN", message)
        self._kept[handle] = auth
        return auth
