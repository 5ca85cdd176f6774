"""One HTTP request to a registry: scheme, TLS, credentials, tokens and redirects.

Credentials go to the candidate's own host and to nobody else: a redirect to another origin is followed without them
(CVE-2020-15157), and the token server gets what `crio_core.image.auth.plan_token` allows. TLS is verified, with extra
CAs and client certificates from `certs.d` directories. A host that is marked insecure is asked by HTTPS without
verification first, and by plain HTTP then.
"""

import ssl
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from crio_core.errors import Code, OperationError
from crio_core.image.auth import Challenge, Credentials, parse_challenges, parse_token, plan_token
from crio_core.image.resolved import Candidate
from crio_io.mounts import in_thread
from crio_io.registry.retry import RegistryError

if TYPE_CHECKING:
    import httpx

CONNECT_S = 10.0
READ_S = 30.0
TOKEN_S = 30.0
REDIRECTS_MAX = 5
HOSTS_MAX = 16
CONNECTIONS_PER_HOST_MAX = 16
KEEPALIVE_S = 15.0
TOKENS_MAX = 256
TOKEN_BYTES_MAX = 1024 * 1024
TOKEN_MARGIN_S = 10.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = "crio"


class Transport:
    """HTTP clients, one for each host, and the tokens that registries gave.

    Args:
        certs_dirs: Directories with a `host[:port]` directory for each host, as `/etc/containers/certs.d`.
        read_timeout_s: How long an answer, or its next bytes, may take.
    """

    def __init__(self, certs_dirs: tuple[Path, ...] = (), read_timeout_s: float = READ_S) -> None:
        self._certs_dirs = certs_dirs
        self._read_timeout_s = read_timeout_s
        self._clients: OrderedDict[tuple[str, bool], httpx.AsyncClient] = OrderedDict()
        self._schemes: dict[str, str] = {}
        self._tokens: OrderedDict[tuple[str, str, Credentials], tuple[str, float]] = OrderedDict()
        self._clients_lock = anyio.Lock()

    async def aclose(self) -> None:
        """Close every connection and forget every token."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()
        self._tokens.clear()

    @asynccontextmanager
    async def get(
        self, candidate: Candidate, credentials: Credentials, path: str, headers: Mapping[str, str]
    ) -> AsyncIterator["httpx.Response"]:
        """GET a path of a candidate's repository, and give the answer with its body unread.

        Args:
            path: What follows `/v2/<repository>/`.

        Raises:
            RegistryError: There was no answer, or one that is not 200 or 206.
        """
        import httpx

        try:
            response = await self._answer(candidate, credentials, path, headers)
            try:
                yield response
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()
        except httpx.TimeoutException as error:
            raise _unreachable(candidate, "did not answer in time", error) from error
        except httpx.TransportError as error:
            raise _unreachable(candidate, str(error) or type(error).__name__, error) from error
        except httpx.InvalidURL as error:
            raise RegistryError(reason="REGISTRY_ANSWER_INVALID", message=f"{candidate.host}: {error}") from error

    async def _answer(
        self, candidate: Candidate, credentials: Credentials, path: str, headers: Mapping[str, str]
    ) -> "httpx.Response":
        response = await self._send(candidate, path, headers, self._authorization(candidate, credentials))
        if response.status_code == 401:
            challenges = parse_challenges(", ".join(response.headers.get_list("www-authenticate")))
            await response.aclose()
            authorization = await self._authorize(candidate, credentials, challenges)
            response = await self._send(candidate, path, headers, authorization)
        if response.status_code not in (200, 206):
            await response.aclose()
            raise _refused(candidate, path, response)
        return response

    async def _send(
        self, candidate: Candidate, path: str, headers: Mapping[str, str], authorization: str
    ) -> "httpx.Response":
        """Send to the first scheme that works, and follow redirects."""
        import httpx

        client = await self._client(candidate.host, candidate.insecure)
        known = self._schemes.get(candidate.host)
        schemes = (known,) if known else (("https", "http") if candidate.insecure else ("https",))
        for scheme in schemes:
            url = httpx.URL(f"{scheme}://{candidate.host}/v2/{candidate.repository}/{path}")
            try:
                response = await self._send_one(client, url, headers, authorization)
            except httpx.ConnectError:
                if scheme == schemes[-1]:
                    self._schemes.pop(candidate.host, None)
                    raise
                continue
            self._schemes[candidate.host] = scheme
            return await self._follow(candidate, response, headers, authorization)
        raise AssertionError("a loop over at least one scheme returns or raises")

    async def _follow(
        self, candidate: Candidate, response: "httpx.Response", headers: Mapping[str, str], authorization: str
    ) -> "httpx.Response":
        origin = response.request.url
        for _ in range(REDIRECTS_MAX):
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response
            here = response.request.url
            url = here.join(response.headers["location"])
            await response.aclose()
            if url.scheme not in ("https", "http") or not url.host or url.userinfo:
                raise RegistryError(
                    reason="REDIRECT_REFUSED", message=f"{candidate.host} redirects to {str(url)[:200]!r}"
                )
            if url.scheme == "http" and here.scheme == "https" and not candidate.insecure:
                raise RegistryError(
                    reason="REDIRECT_REFUSED", message=f"{candidate.host} redirects from HTTPS to {str(url)[:200]!r}"
                )
            same = (url.scheme, url.host, url.port) == (origin.scheme, origin.host, origin.port)
            netloc = url.netloc.decode("ascii")
            client = await self._client(candidate.host if same else netloc, candidate.insecure if same else False)
            response = await self._send_one(client, url, headers, authorization if same else "")
        await response.aclose()
        raise RegistryError(
            reason="REDIRECT_REFUSED", message=f"{candidate.host} redirects more than {REDIRECTS_MAX} times"
        )

    async def _send_one(
        self, client: "httpx.AsyncClient", url: "httpx.URL", headers: Mapping[str, str], authorization: str
    ) -> "httpx.Response":
        sent = {"accept-encoding": "identity", **headers}
        if authorization:
            sent["authorization"] = authorization
        return await client.send(client.build_request("GET", url, headers=sent), stream=True)

    def _authorization(self, candidate: Candidate, credentials: Credentials) -> str:
        """What to send before any challenge: a token that is still good, or nothing."""
        if credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        key = (candidate.host, candidate.repository, credentials)
        authorization, good_until_s = self._tokens.get(key, ("", 0.0))
        return authorization if time.monotonic() < good_until_s else ""

    async def _authorize(
        self, candidate: Candidate, credentials: Credentials, challenges: tuple[Challenge, ...]
    ) -> str:
        """Answer a challenge: the value of the `Authorization` header to send."""
        by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
        if "bearer" in by_scheme:
            authorization, life_s = await self._fetch_token(candidate, credentials, by_scheme["bearer"])
        elif "basic" in by_scheme and credentials.username:
            authorization, life_s = credentials.basic(), 3600
        else:
            message = f"{candidate.host}/{candidate.repository}: credentials are needed and none are known"
            raise RegistryError(reason="REGISTRY_UNAUTHORIZED", message=message, status=401)
        self._tokens[(candidate.host, candidate.repository, credentials)] = (
            authorization,
            time.monotonic() + life_s - TOKEN_MARGIN_S,
        )
        while len(self._tokens) > TOKENS_MAX:
            self._tokens.popitem(last=False)
        return authorization

    async def _fetch_token(
        self, candidate: Candidate, credentials: Credentials, challenge: Challenge
    ) -> tuple[str, int]:
        import httpx

        try:
            plan = plan_token(challenge, candidate.host, candidate.repository, credentials, insecure=candidate.insecure)
        except OperationError as error:
            raise RegistryError(reason=error.reason, message=error.message, status=401) from error
        url = httpx.URL(plan.url)
        netloc = url.netloc.decode("ascii")
        client = await self._client(netloc, candidate.insecure)
        headers = {"authorization": plan.authorization} if plan.authorization else {}
        if plan.form:
            headers["content-type"] = "application/x-www-form-urlencoded"
        request = client.build_request("POST" if plan.form else "GET", url, headers=headers, content=plan.form or None)
        try:
            with anyio.fail_after(TOKEN_S):
                response = await client.send(request, stream=True)
                try:
                    body = await read_bounded(response, TOKEN_BYTES_MAX, f"token server {netloc}")
                finally:
                    await response.aclose()
        except TimeoutError as error:
            message = f"token server {netloc} did not answer in {TOKEN_S:g} s"
            raise RegistryError(reason="REGISTRY_TIMEOUT", message=message, retryable=True) from error
        if response.status_code != 200:
            raise _refused(candidate, f"token from {netloc}", response)
        try:
            token, life_s = parse_token(body)
        except OperationError as error:
            raise RegistryError(reason=error.reason, message=f"{netloc}: {error.message}", status=401) from error
        return f"Bearer {token}", life_s

    async def _client(self, host: str, insecure: bool) -> "httpx.AsyncClient":
        import httpx

        async with self._clients_lock:
            key = (host, insecure)
            if key in self._clients:
                self._clients.move_to_end(key)
                return self._clients[key]
            context = await in_thread(f"TLS settings of {host}", self._tls, host, insecure)
            client = httpx.AsyncClient(
                verify=context,
                follow_redirects=False,
                timeout=httpx.Timeout(self._read_timeout_s, connect=CONNECT_S, pool=None),
                limits=httpx.Limits(max_connections=CONNECTIONS_PER_HOST_MAX, keepalive_expiry=KEEPALIVE_S),
                headers={"user-agent": USER_AGENT},
            )
            self._clients[key] = client
            if len(self._clients) > HOSTS_MAX:
                # Not closed here: a transfer may still use it, and it closes its connections itself when they idle.
                self._clients.popitem(last=False)
            return client

    def _tls(self, host: str, insecure: bool) -> ssl.SSLContext:
        context = ssl.create_default_context() if not insecure else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        for certs_dir in self._certs_dirs:
            place = certs_dir / host
            if "/" in host or not place.is_dir():
                continue
            try:
                for file in sorted(place.iterdir()):
                    if file.suffix == ".crt":
                        context.load_verify_locations(cafile=file)
                    elif file.suffix == ".cert":
                        context.load_cert_chain(file, file.with_suffix(".key"))
            except (OSError, ssl.SSLError) as error:
                message = f"{place}: {error}"
                raise RegistryError(reason="REGISTRY_CERTIFICATES_INVALID", message=message) from error
            break
        return context


@asynccontextmanager
async def body_of(response: "httpx.Response") -> AsyncIterator[AsyncIterator[bytes]]:
    """The pieces of an answer's body as they come; leaving early closes the connection.

    httpx makes the pieces in nested generators and does not close the inner ones of a body that is left early. So the
    connection is closed first, and then the generators run into that.
    """
    import httpx

    pieces = response.aiter_raw()
    try:
        yield pieces
    finally:
        with anyio.CancelScope(shield=True), suppress(httpx.HTTPError, httpx.StreamError):
            await response.aclose()
            async for _ in pieces:
                continue


async def read_bounded(response: "httpx.Response", bytes_max: int, what: str) -> bytes:
    """The whole body of an answer, which must not be longer than `bytes_max` (CVE-2020-1702, CVE-2023-25153).

    Raises:
        RegistryError: It is longer.
    """
    parts = []
    total = 0
    async with body_of(response) as pieces:
        async for part in pieces:
            total += len(part)
            if total > bytes_max:
                message = f"{what}: answer has more than {bytes_max} bytes"
                raise RegistryError(reason="REGISTRY_ANSWER_TOO_LARGE", message=message)
            parts.append(part)
    return b"".join(parts)


def to_operation_error(error: RegistryError, what: str) -> OperationError:
    """The error that a client is shown."""
    code = {401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 404: Code.NOT_FOUND}.get(
        error.status, Code.UNAVAILABLE if error.retryable or not error.status else Code.UNKNOWN
    )
    return OperationError(code, error.reason, f"{what}: {error.message}")


def _refused(candidate: Candidate, path: str, response: "httpx.Response") -> RegistryError:
    status = response.status_code
    reason = {401: "REGISTRY_UNAUTHORIZED", 403: "REGISTRY_DENIED", 404: "IMAGE_NOT_FOUND", 429: "REGISTRY_BUSY"}.get(
        status, "REGISTRY_FAILED" if status >= 500 else "REGISTRY_REFUSED"
    )
    after = response.headers.get("retry-after", "")
    return RegistryError(
        reason=reason,
        message=f"{candidate.host}/{candidate.repository}: {path}: HTTP {status}",
        status=status,
        retryable=status in (408, 429) or status >= 500,
        retry_after_s=float(after) if after.isascii() and after.isdigit() else 0.0,
    )


def _unreachable(candidate: Candidate, why: str, error: Exception) -> RegistryError:
    name = "REGISTRY_TIMEOUT" if "Timeout" in type(error).__name__ else "REGISTRY_UNREACHABLE"
    return RegistryError(reason=name, message=f"{candidate.host}: {why}", retryable=True)
