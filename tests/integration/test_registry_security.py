"""Registries with credentials, tokens and TLS, real ones and hostile ones: who is shown what, and what is believed."""

import base64
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_core.cri import AuthConfig
from crio_core.errors import OperationError
from crio_core.image.auth import Auth
from crio_core.image.platform import platform_of_machine
from crio_core.image.reference import parse_reference
from crio_core.image.registries import RegistriesConfig, candidates
from crio_core.image.resolved import Candidate
from crio_io.registry.client import Rates, RegistryClient
from crio_io.registry.credentials import CredentialSources
from crio_io.registry.transport import Transport
from crio_io.storage.store import Store
from tests.integration.misbehaving_registry import Handler, MisbehavingRegistry
from tests.integration.registry_fixture import LocalRegistry, archive, digest, pack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners: needs root"),
]

PLATFORM = platform_of_machine(os.uname().machine)
LAYER = pack(archive({"f": b"content"}))
PASSWORD = "secret-word"
HTPASSWD = "user:$2b$05$3Q4CInBS.g/to50jKK/Rv.r1EzxLk86scQOpUo95Tr7w9q5L77SKi\n"
"""`user` with the password above, by bcrypt at its lowest cost."""
AUTH = Auth(cri=AuthConfig(username="user", password=PASSWORD))
BASIC = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Store]:
    found = Store(tmp_path / "criotest-store")
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
async def client(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[RegistryClient]:
    rates = Rates(min_bytes_per_s=100_000, window_s=2)
    found = RegistryClient(certs_dirs=(tmp_path / "certs.d",), rates=rates)
    yield found
    await found.aclose()


def insecure(reference: str) -> Candidate:
    """Where a reference on loopback is looked for by default: with or without TLS."""
    [own] = candidates(RegistriesConfig(), parse_reference(reference))
    return own


def secure(reference: str) -> Candidate:
    return replace(insecure(reference), insecure=False)


async def pull(client: RegistryClient, store: Store, where: Candidate, auth: Auth | None = None) -> None:
    image = await client.resolve((where,), PLATFORM, auth or Auth())
    for layer in image.layers:
        await client.fetch_blob(image.sources, layer, store, lambda _: None, auth or Auth())
        await store.apply_layer(layer)


async def reason_of(client: RegistryClient, store: Store, where: Candidate, auth: Auth | None = None) -> str:
    with anyio.fail_after(60), pytest.raises(OperationError) as caught:
        await pull(client, store, where, auth)
    assert PASSWORD not in str(caught.value)
    assert store.list_layers() == ()
    return caught.value.reason


def certificate(directory: Path, name: str, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """A self-signed certificate of an address, and its key."""
    paths = directory / f"{name}.pem", directory / f"{name}-key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", paths[1], "-out", paths[0], "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return paths


def trust(tmp_path: Path, host: str, ca: Path) -> Path:
    """Let the client know a certificate of this host; gives the directory."""
    place = tmp_path / "certs.d" / host
    place.mkdir(parents=True, exist_ok=True)
    (place / "ca.crt").write_bytes(ca.read_bytes())
    return place


def shown(registry: MisbehavingRegistry) -> list[str]:
    """What was sent to a registry as `Authorization`."""
    headers = [{name.lower(): value for name, value in sent.items()} for _, sent in registry.requests]
    return [one["authorization"] for one in headers if "authorization" in one]


def pushed(directory: Path) -> str:
    """Put an image where a registry will have it; gives its name."""
    with LocalRegistry(directory) as registry:
        registry.push("private/app", [LAYER], tag="v1")
    return "private/app:v1"


async def test_docker_registry_with_basic_gives_the_image_for_the_password_only(
    client: RegistryClient, store: Store, tmp_path: Path
) -> None:
    """The registry that people run, with its password file."""
    name = pushed(tmp_path / "registry")
    with LocalRegistry(tmp_path / "registry", htpasswd=HTPASSWD) as registry:
        where = insecure(f"{registry.host}/{name}")
        assert await reason_of(client, store, where) == "REGISTRY_UNAUTHORIZED"
        wrong = Auth(cri=AuthConfig(username="user", password="guess"))
        assert await reason_of(client, store, where, wrong) == "REGISTRY_UNAUTHORIZED"
        await pull(client, store, where, AUTH)
        assert len(store.list_layers()) == 1


async def test_docker_registry_over_tls_gives_the_image(client: RegistryClient, store: Store, tmp_path: Path) -> None:
    """Verified TLS by the CA of certs.d, and Basic over it."""
    name, (cert, key) = pushed(tmp_path / "registry"), certificate(tmp_path, "server")
    with LocalRegistry(tmp_path / "registry", htpasswd=HTPASSWD, tls=(cert, key)) as registry:
        where = secure(f"{registry.host}/{name}")
        assert await reason_of(client, store, where, AUTH) == "REGISTRY_UNREACHABLE"
        trust(tmp_path, registry.host, cert)
        await pull(client, store, where, AUTH)


async def test_docker_registry_that_wants_a_client_certificate_gets_the_one_of_certs_d(
    client: RegistryClient, store: Store, tmp_path: Path
) -> None:
    """certs.d/host/client.cert and .key, also when they are put there, or renewed, while the server runs."""
    name, (cert, key) = pushed(tmp_path / "registry"), certificate(tmp_path, "server")
    mine, others = certificate(tmp_path, "client"), certificate(tmp_path, "stranger")
    with LocalRegistry(tmp_path / "registry", tls=(cert, key), client_ca=mine[0]) as registry:
        where = secure(f"{registry.host}/{name}")
        place = trust(tmp_path, registry.host, cert)
        assert await reason_of(client, store, where) == "REGISTRY_UNREACHABLE"
        for known, works in ((others, False), (mine, True)):
            (place / "client.key").write_bytes(known[1].read_bytes())
            (place / "client.cert").write_bytes(known[0].read_bytes())
            if works:
                await pull(client, store, where)
            else:
                assert await reason_of(client, store, where) == "REGISTRY_UNREACHABLE"


def token_for(key: Path, cert: Path, directory: Path, access: list[dict[str, object]]) -> str:
    """A token as docker-registry checks it: RFC 7519, signed by the key, with the certificate inside."""
    der = subprocess.run(["openssl", "x509", "-in", cert, "-outform", "DER"], check=True, stdout=subprocess.PIPE).stdout
    header = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
    payload = {"iss": "issuer", "sub": "user", "aud": "service", "exp": 4_000_000_000, "nbf": 0, "access": access}
    parts = [base64.urlsafe_b64encode(json.dumps(one).encode()).rstrip(b"=") for one in (header, payload)]
    text = directory / "text"
    text.write_bytes(b".".join(parts))
    signing = ["openssl", "dgst", "-sha256", "-sign", str(key), str(text)]
    signature = subprocess.run(signing, check=True, stdout=subprocess.PIPE).stdout
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def test_docker_registry_with_a_token_server_gives_the_image_for_the_password_only(
    client: RegistryClient, store: Store, tmp_path: Path
) -> None:
    """The Bearer flow with both ends as they are in the world: scope, service, signed token."""
    name, cert, key = pushed(tmp_path / "registry"), tmp_path / "rsa.pem", tmp_path / "rsa-key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", cert,
         "-subj", "/CN=issuer"], check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def answer(handler: Handler) -> bool:
        known = handler.headers.get("authorization") == BASIC and "service=service" in handler.path
        access: list[dict[str, object]] = [{"type": "repository", "name": "private/app", "actions": ["pull"]}]
        granted = access if known and "scope=repository%3Aprivate%2Fapp%3Apull" in handler.path else []
        handler.reply(200, json.dumps({"token": token_for(key, cert, tmp_path, granted)}).encode())
        return True

    with MisbehavingRegistry(answer) as tokens:
        section = {
            "realm": f"http://{tokens.host}/token",
            "service": "service",
            "issuer": "issuer",
            "rootcertbundle": str(cert),
        }
        with LocalRegistry(tmp_path / "registry", token=section) as registry:
            where = insecure(f"{registry.host}/{name}")
            assert await reason_of(client, store, where) == "REGISTRY_UNAUTHORIZED"
            await pull(client, store, where, AUTH)
        assert set(shown(tokens)) == {BASIC}


def needs_basic(handler: Handler) -> bool:
    if handler.headers.get("authorization") == BASIC:
        return False
    handler.reply(401, b"", {"www-authenticate": 'Basic realm="test"'})
    return True


async def test_cve_2019_10214_scheme_of_an_insecure_pull_is_not_used_for_a_secure_one(
    client: RegistryClient, store: Store
) -> None:
    """CVE-2019-10214: that a host spoke plain HTTP to those who allow it says nothing to those who do not."""
    with MisbehavingRegistry(needs_basic) as plain:
        reference = plain.put("a", LAYER)
        await client.resolve((insecure(reference),), PLATFORM, AUTH)
        before = len(plain.requests)
        assert await reason_of(client, store, secure(reference), AUTH) == "REGISTRY_UNREACHABLE"
        assert len(plain.requests) == before, "nothing was sent, and no password with it"


async def test_cve_2019_10214_realm_with_bad_tls_gets_nothing(
    client: RegistryClient, store: Store, tmp_path: Path
) -> None:
    """CVE-2019-10214: a token server is verified as the registry is; another host's also for an insecure registry."""
    good, bad = certificate(tmp_path, "good"), certificate(tmp_path, "bad")
    with MisbehavingRegistry(tls=bad) as tokens:
        realm = tokens.host

        def challenge(handler: Handler) -> bool:
            handler.reply(401, b"", {"www-authenticate": f'Bearer realm="https://{realm}/token"'})
            return True

        with MisbehavingRegistry(challenge, tls=good) as registry:
            trust(tmp_path, registry.host, good[0])
            where = secure(registry.put("a", LAYER))
            assert await reason_of(client, store, where, AUTH) == "REGISTRY_UNREACHABLE"
            realm = f"localhost:{tokens.host.partition(':')[2]}"
            where = insecure(f"{registry.host}/a:latest")
            assert await reason_of(client, store, where, AUTH) == "REGISTRY_UNREACHABLE"
        assert tokens.requests == []


async def test_cve_2020_15157_challenge_of_a_redirects_target_is_not_answered(
    client: RegistryClient, store: Store
) -> None:
    """CVE-2020-15157: who asks for a password must be the registry, not where it sends us for a blob."""
    for scheme in ("Basic", "Bearer"):

        def asks(handler: Handler, scheme: str = scheme) -> bool:
            realm = f"http://{handler.registry.host}/token"
            handler.reply(401, b"", {"www-authenticate": f'{scheme} realm="{realm}",service="s"'})
            return True

        with MisbehavingRegistry(asks) as elsewhere:

            def redirects(handler: Handler, target: str = elsewhere.host) -> bool:
                if "/blobs/" not in handler.path:
                    return needs_basic(handler)
                handler.reply(307, b"", {"location": f"http://{target}{handler.path}"})
                return True

            with MisbehavingRegistry(redirects) as first:
                where = insecure(first.put("a", LAYER))
                assert await reason_of(client, store, where, AUTH) == "REGISTRY_UNAUTHORIZED"
            assert shown(elsewhere) == []
            assert not any("/token" in path for path, _ in elsewhere.requests)


async def test_cve_2020_15157_layer_with_foreign_urls_is_not_fetched_from_there(
    client: RegistryClient, store: Store
) -> None:
    """CVE-2020-15157: `urls` of a layer are an image author's word: nobody is asked anything by them."""
    with MisbehavingRegistry(needs_basic) as elsewhere, MisbehavingRegistry(needs_basic) as registry:
        reference = registry.put("a", LAYER)
        for path, (body, kind) in list(registry.content.items()):
            if "/manifests/latest" in path:
                manifest = json.loads(body)
                manifest["layers"][0]["urls"] = [f"http://{elsewhere.host}/blob"]
                registry.content[path] = (json.dumps(manifest).encode(), kind)
        await pull(client, store, insecure(reference), AUTH)
        assert elsewhere.requests == []


def redirecting(status: int, target: Callable[[Handler], str]) -> Callable[[Handler], bool]:
    def answer(handler: Handler) -> bool:
        handler.reply(status, b"", {"location": target(handler)})
        return True

    return answer


async def test_redirects_in_a_circle_end(client: RegistryClient, store: Store) -> None:
    """A loop is named after a few rounds."""
    with MisbehavingRegistry(redirecting(302, lambda handler: handler.path)) as registry:
        assert await reason_of(client, store, insecure(registry.put("a", LAYER))) == "REDIRECT_REFUSED"
        assert len(registry.requests) < 20


@pytest.mark.parametrize("target", ["http", "file"])
async def test_redirect_out_of_https_is_refused(
    client: RegistryClient, store: Store, tmp_path: Path, target: str
) -> None:
    """CVE-2019-10214: TLS that ends half-way is none."""
    tls = certificate(tmp_path, "server")
    with MisbehavingRegistry() as plain:
        plain.put("a", LAYER)
        places = {"http": lambda handler: f"http://{plain.host}{handler.path}", "file": lambda _: "file:///etc/shadow"}
        with MisbehavingRegistry(redirecting(307, places[target]), tls=tls) as registry:
            trust(tmp_path, registry.host, tls[0])
            assert await reason_of(client, store, secure(registry.put("a", LAYER))) == "REDIRECT_REFUSED"
        assert plain.requests == []


def endless(handler: Handler) -> bool:
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while not handler.close_connection and handler.registry.sent_bytes < 200_000_000:
        handler.send(chunk)
    handler.close_connection = True
    return True


async def test_cve_2020_1702_endless_token_is_cut_off(client: RegistryClient, store: Store) -> None:
    """CVE-2020-1702: a token server is no more trusted with our memory than a registry."""

    def answer(handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            return endless(handler)
        handler.reply(401, b"", {"www-authenticate": f'Bearer realm="http://{handler.registry.host}/token"'})
        return True

    with MisbehavingRegistry(answer) as registry:
        where = insecure(registry.put("a", LAYER))
        assert await reason_of(client, store, where, AUTH) == "REGISTRY_ANSWER_TOO_LARGE"
        assert registry.sent_bytes < 60_000_000


async def test_cve_2020_1702_endless_configuration_is_cut_off(client: RegistryClient, store: Store) -> None:
    """CVE-2020-1702: at the size that the manifest states."""

    def answer(handler: Handler) -> bool:
        return "/blobs/" in handler.path and LAYER.digest not in handler.path and endless(handler)

    with MisbehavingRegistry(answer) as registry:
        assert await reason_of(client, store, insecure(registry.put("a", LAYER))) == "REGISTRY_ANSWER_TOO_LARGE"
        assert registry.sent_bytes < 60_000_000


OTHER = digest(b"something else")


@pytest.mark.parametrize(
    ("stated", "reason"),
    [(OTHER, "DIGEST_MISMATCH"), ("sha256:../../etc", "INVALID_FIELD"), ("md5:" + "0" * 32, "INVALID_FIELD")],
)
async def test_cve_2024_3727_stated_digest_of_a_manifest_is_checked(
    client: RegistryClient, store: Store, stated: str, reason: str
) -> None:
    """CVE-2024-3727: Docker-Content-Digest is a claim; it goes into no name before it was compared."""

    def answer(handler: Handler) -> bool:
        if "/manifests/" not in handler.path:
            return False
        body, kind = handler.registry.content[handler.path]
        handler.reply(200, body, {"content-type": kind, "docker-content-digest": stated})
        return True

    with MisbehavingRegistry(answer) as registry:
        assert await reason_of(client, store, insecure(registry.put("a", LAYER))) == reason


async def test_manifest_that_is_not_the_one_of_the_digest_is_refused(client: RegistryClient, store: Store) -> None:
    """Pulling by digest means these bytes, whatever the registry says about others."""
    with MisbehavingRegistry() as registry:
        registry.put("a", LAYER)
        lie = pack(archive({"f": b"another"}))
        registry.put("a", lie, tag="lie")
        wanted, other = (registry.content[f"/v2/a/manifests/{tag}"][0] for tag in ("latest", "lie"))
        path = f"/v2/a/manifests/{digest(wanted)}"
        registry.content[path] = (other, registry.content[path][1])
        where = insecure(f"{registry.host}/a@{digest(wanted)}")
        assert await reason_of(client, store, where) == "DIGEST_MISMATCH"


async def test_configuration_that_is_not_the_manifests_is_refused(client: RegistryClient, store: Store) -> None:
    """The configuration names the user that a container runs as."""

    def answer(handler: Handler) -> bool:
        body, kind = handler.registry.content.get(handler.path, (b"", ""))
        if "/blobs/" not in handler.path or LAYER.digest in handler.path:
            return False
        handler.reply(200, body.replace(b"linux", b"xunil"), {"content-type": kind})
        return True

    with MisbehavingRegistry(answer) as registry:
        assert await reason_of(client, store, insecure(registry.put("a", LAYER))) == "DIGEST_MISMATCH"


HELPER = """#!/bin/sh
[ "$1" = get ] || exit 2
read -r server
echo "$server" >> {directory}/asked
case $(cat {directory}/mood) in
  good) printf '{{"ServerURL": "%s", "Username": "user", "Secret": "secret-word"}}' "$server";;
  ignorant) echo "credentials not found in native keychain"; exit 1;;
  slow) exec sleep 60;;
  endless) exec yes secret-word;;
esac
"""


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """A credential helper `docker-credential-criotest`: call this with its mood, get what it was asked before."""
    program = tmp_path / "bin" / "docker-credential-criotest"
    program.parent.mkdir()
    program.write_text(HELPER.format(directory=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("crio_io.registry.credentials.HELPER_S", 1.0)

    def put(mood: str) -> list[str]:
        asked = tmp_path / "asked"
        before = asked.read_text().splitlines() if asked.exists() else []
        (tmp_path / "mood").write_text(mood)
        return before

    return put


async def test_credential_helper_gives_the_password_of_its_host(
    client: RegistryClient, store: Store, tmp_path: Path, helper: Callable[[str], list[str]]
) -> None:
    """credHelpers of an auth file: the program is run once for a pull, by deadline and with bounded output."""
    with MisbehavingRegistry(needs_basic) as registry:
        where = insecure(registry.put("a", LAYER))
        file = tmp_path / "auth.json"
        file.write_text(json.dumps({"auths": {where.host: {}}, "credHelpers": {where.host: "criotest"}}))
        for mood, reason in (("slow", "TIMEOUT"), ("endless", "TIMEOUT")):
            helper(mood)
            with pytest.raises(OperationError) as caught:
                await CredentialSources().gather(AuthConfig(), str(file), (), (where,))
            assert caught.value.reason == reason and PASSWORD not in caught.value.message
        helper("ignorant")
        nobody = await CredentialSources().gather(AuthConfig(), str(file), (), (where,))
        assert await reason_of(client, store, where, nobody) == "REGISTRY_UNAUTHORIZED"
        before = len(helper("good"))
        sources = CredentialSources()
        for _ in range(3):
            auth = await sources.gather(AuthConfig(), str(file), (), (where,))
        await pull(client, store, where, auth)
        assert helper("good")[before:] == [where.host]
        mine = AuthConfig(username="other", password="x")
        asked = await sources.gather(mine, str(file), (), (where,))
        assert asked.for_candidate(where).username == "other"


async def test_credential_helpers_of_registries_conf_are_asked_for_what_the_auth_file_lacks(
    tmp_path: Path, helper: Callable[[str], list[str]]
) -> None:
    """`credential-helpers` of containers-registries.conf(5)."""
    helper("good")
    where = secure("r.example/a")
    auth = await CredentialSources().gather(AuthConfig(), "", ("containers-auth.json", "criotest"), (where,))
    assert auth.for_candidate(where).username == "user"
    assert helper("good") == ["r.example"]


async def test_clients_of_many_hosts_and_of_old_certificates_are_closed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each client has a TLS context of half a megabyte and sockets: a node that meets many hosts keeps few of them."""
    monkeypatch.setattr("crio_io.registry.transport.HOSTS_MAX", 2)
    monkeypatch.setattr("crio_io.registry.transport.RETIRED_S", 0.0)
    transport = Transport((tmp_path / "certs.d",))
    clients = [await transport._client(f"r{number}.example", False) for number in range(4)]
    cert, _ = certificate(tmp_path, "server")
    trust(tmp_path, "r3.example", cert)
    renewed = await transport._client("r3.example", False)
    assert renewed is not clients[3] and await transport._client("r3.example", False) is renewed
    assert [one.is_closed for one in clients] == [True, True, False, True]
    await transport.aclose()
    assert all(one.is_closed for one in (*clients, renewed))
