"""One HTTP request to a registry: scheme, TLS, credentials, tokens and redirects.

Credentials go to the candidate's own host and to nobody else: a redirect to another origin is followed without them, a
challenge that comes from there is not answered (CVE-2020-15157), and the token server gets what
`crio_core.image.auth.plan_token` allows. TLS is verified, with extra CAs and client certificates from `certs.d`
directories, which are looked at for each request, so that rotated files count at once. A host that is marked insecure
is asked by HTTPS without verification first, and by plain HTTP then; what that shows is for such requests only.
"""

import logging
import math
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
from crio_core.image.reference import host_name
from crio_core.image.resolved import Candidate
from crio_io.mounts import in_thread
from crio_io.registry.certificates import Certificates, authorities_stamp, certificates_of, tls_context
from crio_io.registry.retry import RegistryError

if TYPE_CHECKING:
    import httpx

log = logging.getLogger(__name__)

CONNECT_S = 10.0
READ_S = 30.0
TOKEN_S = 30.0
REDIRECTS_MAX = 5
HOSTS_MAX = 16
RETIRED_S = 3600.0
RETIRED_MAX = 64
CONNECTIONS_PER_HOST_MAX = 64
"""More than transfers there can be, so that a document never waits for a layer."""
KEEPALIVE_S = 15.0
TOKENS_MAX = 256
SCHEMES_MAX = 256
TOKEN_BYTES_MAX = 1024 * 1024
TOKEN_MARGIN_S = 10.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
USER_AGENT = "crio"
UNAVAILABLE = "RegistryUnavailable"
"""By messages that begin so a kubelet knows that its image is no matter of the pod (k8s.io/cri-api, pkg/errors)."""
_UNAVAILABLE_REASONS = frozenset({"REGISTRY_UNREACHABLE", "REGISTRY_TIMEOUT", "REGISTRY_BUSY", "REGISTRY_FAILED"})


class Transport:
    """HTTP clients, one for each host, and the tokens that registries gave.

    Args:
        certs_dirs: Directories with a `host[:port]` directory for each host, as `/etc/containers/certs.d`.
        read_timeout_s: How long an answer, or its next bytes, may take.
    """

    def __init__(self, certs_dirs: tuple[Path, ...] = (), read_timeout_s: float = READ_S) -> None:
        self.certs_dirs = certs_dirs
        self.read_timeout_s = read_timeout_s
        self._clients: OrderedDict[tuple[str, bool], tuple[object, httpx.AsyncClient]] = OrderedDict()
        """By host and whether TLS need not be verified; each with what it was made from."""
        self._plain_contexts: dict[bool, tuple[int, ssl.SSLContext]] = {}
        """Shared by the hosts without certificates of their own, as each takes most of a megabyte; with what tells one
        version of the system's authorities from another."""
        self._retired: list[tuple[float, httpx.AsyncClient]] = []
        self._schemes: OrderedDict[tuple[str, bool], str] = OrderedDict()
        self._tokens: OrderedDict[tuple[tuple[str, str, bool], Credentials], tuple[str, float]] = OrderedDict()
        self._clients_lock = anyio.Lock()

    async def aclose(self) -> None:
        """Close every connection and forget every token."""
        for _, client in self._clients.values():
            self._retire(client)
        await self._close_retired(math.inf)
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
        except (httpx.TransportError, ssl.SSLError) as error:  # asyncio lets a late alert of TLS 1.3 through as it is
            raise _unreachable(candidate, str(error) or type(error).__name__, error) from error
        except httpx.InvalidURL as error:
            raise RegistryError(reason="REGISTRY_ANSWER_INVALID", message=f"{candidate.host}: {error}") from error

    async def _answer(
        self, candidate: Candidate, credentials: Credentials, path: str, headers: Mapping[str, str]
    ) -> "httpx.Response":
        response = await self._send(candidate, path, headers, self._authorization(candidate, credentials))
        if response.status_code == 401 and not _is_foreign(response, candidate):
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
        place = (candidate.host, candidate.insecure)
        known = self._schemes.get(place)
        schemes = (known,) if known else (("https", "http") if candidate.insecure else ("https",))
        for scheme in schemes:
            url = httpx.URL(f"{scheme}://{candidate.host}/v2/{candidate.repository}/{path}")
            try:
                response = await self._send_one(client, url, headers, authorization)
            except (httpx.ConnectError, httpx.ConnectTimeout):  # A firewall may drop what nobody listens to.
                if scheme == schemes[-1]:
                    self._schemes.pop(place, None)
                    raise
                continue
            self._schemes[place] = scheme
            while len(self._schemes) > SCHEMES_MAX:
                self._schemes.popitem(last=False)
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
        import httpx

        sent = {"accept-encoding": "identity", **headers}
        if authorization:
            sent["authorization"] = authorization
        request = client.build_request("GET", url, headers=sent)
        try:
            # httpx waits for the next byte, and so for ever for headers that come byte by byte.
            with anyio.fail_after(CONNECT_S + self.read_timeout_s):
                return await client.send(request, stream=True)
        except TimeoutError as error:
            raise httpx.ReadTimeout("headers take too long", request=request) from error

    def _authorization(self, candidate: Candidate, credentials: Credentials) -> str:
        """What to send before any challenge: a token that is still good, or nothing."""
        if credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        authorization, good_until_s = self._tokens.get((_place(candidate), credentials), ("", 0.0))
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
        self._tokens[(_place(candidate), credentials)] = (
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
        if plan.withheld:
            log.warning(
                "registry %s names the token server %s: it is not shown the credentials", candidate.host, netloc
            )
        # Another host than the registry's is nowhere marked insecure (CVE-2019-10214).
        client = await self._client(netloc, candidate.insecure and url.host == host_name(candidate.host))
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
        from http.cookiejar import CookieJar, DefaultCookiePolicy

        import httpx

        async with self._clients_lock:
            key = (host, insecure)
            read_timeout_s = self.read_timeout_s
            certificates = await in_thread(f"look at certificates of {host}", certificates_of, self.certs_dirs, host)
            if key in self._clients and self._clients[key][0] == (certificates, read_timeout_s):
                self._clients.move_to_end(key)
                return self._clients[key][1]
            context = await in_thread(f"TLS settings of {host}", self._context, certificates, insecure)
            client = httpx.AsyncClient(
                verify=context,
                follow_redirects=False,
                timeout=httpx.Timeout(read_timeout_s, connect=CONNECT_S, pool=None),
                limits=httpx.Limits(max_connections=CONNECTIONS_PER_HOST_MAX, keepalive_expiry=KEEPALIVE_S),
                headers={"user-agent": USER_AGENT},
                # Without memory: a session that one pull began with credentials is not the next pull's.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            )
            if key in self._clients:
                self._retire(self._clients.pop(key)[1])
            self._clients[key] = ((certificates, read_timeout_s), client)
            if len(self._clients) > HOSTS_MAX:
                self._retire(self._clients.popitem(last=False)[1][1])
            await self._close_retired(time.monotonic())
            return client

    def _context(self, certificates: Certificates, insecure: bool) -> ssl.SSLContext:
        if certificates.files:
            return tls_context(certificates, insecure)
        stamp, known = authorities_stamp(), self._plain_contexts.get(insecure)
        if known is None or known[0] != stamp:
            known = self._plain_contexts[insecure] = (stamp, tls_context(certificates, insecure))
        return known[1]

    def _retire(self, client: "httpx.AsyncClient") -> None:
        """Use a client no more; a transfer that does has time to end, and is gone on with by another client then."""
        self._retired.append((time.monotonic() + RETIRED_S, client))

    async def _close_retired(self, now_s: float) -> None:
        """Close those whose time is over, and the oldest of too many: redirects may name any number of hosts."""
        spared = self._retired[-RETIRED_MAX:]
        due = [client for close_s, client in self._retired[:-RETIRED_MAX]]
        due += [client for close_s, client in spared if close_s <= now_s]
        self._retired = [one for one in spared if one[0] > now_s]
        for client in due:
            await client.aclose()


def _place(candidate: Candidate) -> tuple[str, str, bool]:
    """What a token is good for."""
    return candidate.host, candidate.repository, candidate.insecure


def _is_foreign(response: "httpx.Response", candidate: Candidate) -> bool:
    """Whether an answer came from another origin than the candidate's, after a redirect."""
    import httpx

    url = response.request.url
    return url.netloc != httpx.URL(f"{url.scheme}://{candidate.host}").netloc


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
    unavailable = f"{UNAVAILABLE}: " if error.reason in _UNAVAILABLE_REASONS else ""
    return OperationError(code, error.reason, f"{unavailable}{what}: {error.message}")


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
