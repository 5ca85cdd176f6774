"""Credential helpers: which are asked for a registry, and what their answers mean.

A helper is a program `docker-credential-NAME`, which reads a server's name and writes JSON (the protocol of
docker-credential-helpers). The names come from an auth file (`credHelpers` for one registry, `credsStore` for all) and
from `credential-helpers` of containers-registries.conf(5).
"""

import json
import re

from crio_core.errors import Code, OperationError, invalid
from crio_core.image.auth import ANONYMOUS, AuthFile, Credentials, canonical_host, find_credentials
from crio_core.values import dataclass

AUTH_FILES = "containers-auth.json"
"""In `credential-helpers` this stands for the auth files themselves."""
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", re.ASCII)
_HUB = "docker.io"
_HUB_OF_STORES = "https://index.docker.io/v1/"
"""How Docker itself names its registry to a `credsStore`."""
_TOKEN_USER = "<token>"
_NOT_FOUND = "credentials not found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A helper to ask, by its whole program name, and the server to ask it about."""

    program: str
    server: str


def questions(
    file: AuthFile, configured: tuple[str, ...], candidate_host: str, repository: str
) -> tuple[Question, ...]:
    """Which helpers may know credentials for a repository, in the order to ask them; none when the file has them.

    Raises:
        OperationError: INVALID_ARGUMENT: a name that is no helper's.
    """
    host = canonical_host(candidate_host)
    server = _HUB if host == canonical_host(_HUB) else host
    if helper := file.helpers.get(host):
        return (_question(helper, server),)
    if not find_credentials(file.auths, candidate_host, repository).is_anonymous:
        return ()
    store = (_question(file.store, _HUB_OF_STORES if server == _HUB else server),) if file.store else ()
    return (*store, *(_question(name, server) for name in configured if name != AUTH_FILES))


def _question(name: str, server: str) -> Question:
    if not _NAME.fullmatch(name):
        raise invalid("credential helper", name[:100], "the part of a program's name behind `docker-credential-`")
    return Question(program=f"docker-credential-{name}", server=server)


def parse_answer(question: Question, returncode: int, stdout: bytes) -> Credentials:
    """What a helper knows; nothing when it says that it does not.

    Raises:
        OperationError: UNAVAILABLE, reason CREDENTIAL_HELPER_FAILED, without anything of the answer.
    """
    if returncode != 0 and _NOT_FOUND in stdout.decode("utf-8", "replace"):
        return ANONYMOUS
    if returncode != 0:
        raise _failed(question, f"ended with code {returncode}")
    try:
        document = json.loads(stdout)
        username, secret = document["Username"], document["Secret"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise _failed(question, "did not answer with a user name and a secret") from error
    if not isinstance(username, str) or not isinstance(secret, str):
        raise _failed(question, "did not answer with a user name and a secret")
    if username == _TOKEN_USER:
        return Credentials(identity_token=secret)
    return Credentials(username=username, password=secret)


def _failed(question: Question, what: str) -> OperationError:
    message = f"{question.program} get for {question.server} {what}"
    return OperationError(Code.UNAVAILABLE, "CREDENTIAL_HELPER_FAILED", message)
