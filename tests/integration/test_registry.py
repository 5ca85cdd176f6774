"""Pulls from real and from misbehaving registries: what arrives is right, and what is wrong has a name."""

import base64
import errno
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil
import pytest

from crio_core.cri import AuthConfig
from crio_core.errors import OperationError
from crio_core.image.auth import Auth
from crio_core.image.platform import Platform, platform_of_machine
from crio_core.image.reference import parse_reference
from crio_core.image.registries import RegistriesConfig, candidates
from crio_core.image.resolved import Candidate, ResolvedImage
from crio_io.registry import transport
from crio_io.registry.client import Progress, Rates, RegistryClient
from crio_io.registry.slots import Slots
from crio_io.storage.layer_info import layer_name
from crio_io.storage.store import Store
from tests.integration.misbehaving_registry import Handler, MisbehavingRegistry
from tests.integration.registry_fixture import LocalRegistry, archive, busybox_archive, digest, pack
from tests.integration.storage_fixture import descriptor
from tests.integration.waiting import wait_meanwhile

pytestmark = [
    pytest.mark.integration,
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="unpacking changes owners: needs root"),
]

PLATFORM = platform_of_machine(os.uname().machine)
BIG = pack(archive({f"f{number}": os.urandom(20_000) for number in range(200)}), "none")
SMALL = pack(archive({"f": b"content"}))
PASSWORD = "secret-word"
AUTH = Auth(cri=AuthConfig(username="user", password=PASSWORD))
BASIC = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("criotest-registry")) as found:
        yield found


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: Any) -> AsyncIterator[Store]:
    found = Store(tmp_path / "criotest-store")
    await found.open()
    yield found
    await found.aclose()


@pytest.fixture
async def client(anyio_backend: Any) -> AsyncIterator[RegistryClient]:
    found = RegistryClient(rates=Rates(min_bytes_per_s=100_000, window_s=0.5))
    yield found
    await found.aclose()


def places(reference: str, *mirrors: str) -> tuple[Candidate, ...]:
    """Where to look: mirrors by host, then the reference's own host."""
    [own] = candidates(RegistriesConfig(), parse_reference(reference))
    return (
        *(
            Candidate(reference=own.reference, host=host, repository=own.repository, insecure=True, is_mirror=True)
            for host in mirrors
        ),
        own,
    )


async def pull(
    client: RegistryClient, store: Store, where: tuple[Candidate, ...], auth: Auth | None = None
) -> tuple[ResolvedImage, list[Progress]]:
    """Resolve, fetch and apply, as the node does."""
    progress: list[Progress] = []
    image = await client.resolve(where, PLATFORM, auth or Auth())
    for layer in image.layers:
        await client.fetch_blob(image.sources, layer, store, progress.append, auth or Auth())
        await store.apply_layer(layer)
    assert os.listdir(store.root / "ingest") == []
    assert os.listdir(store.root / "unpacking") == []
    return image, progress


async def reason_of(
    client: RegistryClient, store: Store, where: tuple[Candidate, ...], auth: Auth | None = None
) -> str:
    with anyio.fail_after(30), pytest.raises(OperationError) as caught:
        await pull(client, store, where, auth)
    assert PASSWORD not in str(caught.value)
    assert os.listdir(store.root / "unpacking") == []
    assert store.list_layers() == ()
    return caught.value.reason


async def test_pull_by_tag_and_digest_gives_the_image(
    client: RegistryClient, store: Store, registry: LocalRegistry
) -> None:
    """The straight road, with every compression, against the registry that people run."""
    layers = [pack(busybox_archive()), pack(archive({"z": b"z"}), "zstd"), pack(archive({"t": b"t"}), "none")]
    pushed = registry.push("team/app", layers, tag="v1", config={"Cmd": ["/bin/sh"], "User": "7"})
    image, progress = await pull(client, store, places(pushed.reference))
    assert str(image.config_digest) == pushed.config_digest
    assert str(image.repo_digest) == pushed.manifest_digest
    assert (image.image_config.cmd, image.image_config.user) == (("/bin/sh",), "7")
    assert [str(layer.diff_id) for layer in image.layers] == [layer.diff_id for layer in layers]
    whole = [step for step in progress if step.received_bytes == step.total_bytes]
    assert sum(step.total_bytes for step in whole) == image.compressed_bytes
    again, _ = await pull(client, store, places(f"{registry.host}/team/app@{pushed.manifest_digest}"))
    assert again.image_id == image.image_id
    for reference, reason in (
        (f"{registry.host}/team/app:none", "IMAGE_NOT_FOUND"),
        (f"{registry.host}/no/such", "IMAGE_NOT_FOUND"),
        ("127.0.0.1:1/a", "REGISTRY_UNREACHABLE"),
    ):
        with pytest.raises(OperationError) as caught:
            await client.resolve(places(reference), PLATFORM)
        assert caught.value.reason == reason
        # By this word a kubelet tells a registry's failure from a pod's.
        assert caught.value.message.startswith("RegistryUnavailable: ") == (reason == "REGISTRY_UNREACHABLE")


async def test_pull_of_an_index_takes_this_machines_image(
    client: RegistryClient, store: Store, registry: LocalRegistry
) -> None:
    """An index is what most tags mean; the repository digest is the index's."""
    ours = registry.push("multi", [SMALL], tag="ours")
    theirs = registry.push("multi", [pack(archive({"other": b"1"}))], tag="theirs", architecture="s390x")
    entries = []
    for pushed, architecture in ((theirs, "s390x"), (ours, PLATFORM.architecture)):
        body = await _manifest_size(registry, pushed.manifest_digest)
        entries.append(
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": pushed.manifest_digest,
                "size": body,
                "platform": {"os": "linux", "architecture": architecture},
            }
        )
    kind = "application/vnd.oci.image.index.v1+json"
    index = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).encode()
    registry.push_manifest("multi", index, kind, "both")
    image, _ = await pull(client, store, places(f"{registry.host}/multi:both"))
    assert str(image.config_digest) == ours.config_digest
    assert str(image.repo_digest) == str(image.index_digest) == digest(index)
    with pytest.raises(OperationError) as caught:
        await client.resolve(places(f"{registry.host}/multi:both"), Platform(architecture="riscv64"))
    assert caught.value.reason == "PLATFORM_MISMATCH"


async def _manifest_size(registry: LocalRegistry, manifest: str) -> int:
    files = list((registry.directory / "data").glob(f"**/sha256/*/{manifest.partition(':')[2]}/data"))
    return files[0].stat().st_size


@pytest.mark.parametrize("form", ["oci", "v2s2"])
async def test_pull_of_an_image_made_by_umoci_and_skopeo(
    client: RegistryClient, store: Store, registry: LocalRegistry, tmp_path: Path, form: str
) -> None:
    """Images come from others' tools, in both formats."""
    layout = tmp_path / "oci"
    (tmp_path / "layer.tar").write_bytes(busybox_archive())
    subprocess.run(["umoci", "init", "--layout", layout], check=True)
    subprocess.run(["umoci", "new", "--image", f"{layout}:t"], check=True)
    subprocess.run(["umoci", "raw", "add-layer", "--image", f"{layout}:t", tmp_path / "layer.tar"], check=True)
    target = f"docker://{registry.host}/made/by-others:{form}"
    command = ["skopeo", "copy", "-q", "--insecure-policy", "--dest-tls-verify=false", "--format", form]
    subprocess.run([*command, f"oci:{layout}:t", target], check=True)
    image, _ = await pull(client, store, places(f"{registry.host}/made/by-others:{form}"))
    [layer] = image.layers
    place = store.layers / layer_name(layer.diff_id) / "fs"
    assert (place / "bin/busybox").read_bytes() == Path("/bin/busybox").read_bytes()
    assert ("docker" in image.manifest_media_type) == (form == "v2s2")


def dropping(every_bytes: int) -> Any:
    """Blobs end after so many bytes, each time."""

    def answer(handler: Handler) -> bool:
        body, _ = handler.registry.content.get(handler.path, (b"", ""))
        if len(body) < 100_000:
            return False
        start = int(handler.headers.get("range", "bytes=0-")[6:-1])
        part = body[start : start + every_bytes]
        headers = {"content-range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
        handler.reply(206 if start else 200, part, headers, length=len(body) - start)
        handler.close_connection = True
        return True

    return answer


async def test_r12_pull_over_dropped_connections_goes_on_where_it_stopped(client: RegistryClient, store: Store) -> None:
    """R12: a connection that drops at every tenth of a blob costs ten requests, not ten blobs."""
    with MisbehavingRegistry(dropping(len(BIG.blob) // 10 + 1)) as bad:
        await pull(client, store, places(bad.put("a", BIG)))
        assert bad.sent_bytes < len(BIG.blob) * 1.1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
async def test_r12_next_pull_fetches_only_what_is_missing(client: RegistryClient, store: Store, share: float) -> None:
    """R12, F2: after a kill at any share of a blob, the partial file is gone on with: at 95 %, 5 % come again."""
    with MisbehavingRegistry() as good:
        reference = good.put("a", BIG)
        kept = int(len(BIG.blob) * share)
        store.blob_path(descriptor(BIG)).write_bytes(BIG.blob[:kept])
        await pull(client, store, places(reference))
        blob_bytes = good.sent_bytes - sum(
            len(body) for path, (body, _) in good.content.items() if BIG.digest not in path
        )
        assert blob_bytes <= len(BIG.blob) - kept + 10_000


async def test_r12_partial_blob_that_is_wrong_is_begun_anew(client: RegistryClient, store: Store) -> None:
    """R12: a power cut can leave zeros in the partial file: the pull recovers by itself."""
    with MisbehavingRegistry() as good:
        reference = good.put("a", BIG)
        store.blob_path(descriptor(BIG)).write_bytes(bytes(len(BIG.blob) // 2))
        await pull(client, store, places(reference))


def lying(handler: Handler) -> bool:
    """Blobs of the right length with another content."""
    body, _ = handler.registry.content.get(handler.path, (b"", ""))
    if "/blobs/" not in handler.path or len(body) < 100_000:
        return False
    handler.reply(200, bytes(len(body)))
    return True


def endless(handler: Handler) -> bool:
    """Blobs, and everything else, never end."""
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while not handler.close_connection and handler.registry.sent_bytes < 200_000_000:
        handler.send(chunk)
    handler.close_connection = True
    return True


def endless_blob(handler: Handler) -> bool:
    return BIG.digest in handler.path and endless(handler)


def stalling(handler: Handler) -> bool:
    """Blobs begin and then nothing comes for a while."""
    body, _ = handler.registry.content.get(handler.path, (b"", ""))
    if BIG.digest not in handler.path:
        return False
    handler.reply(200, body[:100_000], length=len(body))
    handler.connection.settimeout(5)
    try:
        handler.rfile.read(1)  # until the client gives up
    except OSError:
        handler.close_connection = True
    handler.close_connection = True
    return True


def trickling(handler: Handler) -> bool:
    """Blobs come at a few bytes a time, so that there is always some progress."""
    body, _ = handler.registry.content.get(handler.path, (b"", ""))
    if BIG.digest not in handler.path:
        return False
    handler.reply(200, b"", length=len(body))
    for at in range(0, len(body), 100):
        handler.send(body[at : at + 100])
        if handler.close_connection or handler.registry.stopped.wait(0.01):
            break
    handler.close_connection = True
    return True


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lying, "DIGEST_MISMATCH"),
        (endless_blob, "SIZE_MISMATCH"),
        (stalling, "TRANSFER_TOO_SLOW"),
        (trickling, "TRANSFER_TOO_SLOW"),
    ],
)
async def test_r13_source_that_lies_or_stalls_is_named_and_the_next_one_taken(
    client: RegistryClient, store: Store, answer: Any, reason: str
) -> None:
    """R13: slow, stalled, endless or wrong: each fails by its name, and with another source the pull succeeds."""
    with MisbehavingRegistry(answer) as bad, MisbehavingRegistry() as good:
        reference = bad.put("a", BIG)
        assert await reason_of(client, store, places(reference)) == reason
        await pull(client, store, places(good.put("a", BIG), bad.host))


def crawling(handler: Handler) -> bool:
    """Large blobs come byte by byte."""
    body, _ = handler.registry.content.get(handler.path, (b"", ""))
    if len(body) < 100_000:
        return False
    handler.reply(200, b"", length=len(body))
    for byte in body:
        handler.send(bytes([byte]))
        if handler.close_connection or handler.registry.stopped.wait(0.05):
            break
    handler.close_connection = True
    return True


async def test_r13_trickling_pulls_do_not_hold_up_others(store: Store) -> None:
    """R13: seven layers that come at a crawl, just fast enough to be let live, and the healthy eighth does not wait."""
    patient = RegistryClient(rates=Rates(min_bytes_per_s=1, window_s=30), slots=Slots(patience_s=0.2))
    layers = [pack(archive({"f": os.urandom(300_000)}), "none") for _ in range(7)]
    with MisbehavingRegistry(crawling) as slow, MisbehavingRegistry() as good:
        references = [slow.put(f"slow{number}", layer) for number, layer in enumerate(layers)]
        healthy = good.put("healthy", BIG)
        ended: list[str] = []

        async def crawl(reference: str) -> None:
            await pull(patient, store, places(reference))
            ended.append(reference)

        async with anyio.create_task_group() as group:
            for reference in references:
                group.start_soon(crawl, reference)
            with anyio.fail_after(20):
                await wait_meanwhile(
                    "six slow layers",
                    lambda: sum(layer.digest in path for path, _ in slow.requests for layer in layers) >= 6,
                )
                image = await patient.resolve(places(healthy), PLATFORM)
                await patient.fetch_blob(image.sources, image.layers[0], store, lambda _: None)
                await store.apply_layer(image.layers[0])
            assert ended == []
            group.cancel_scope.cancel()
    await patient.aclose()


async def test_cve_2020_1702_endless_document_is_cut_off(client: RegistryClient, store: Store) -> None:
    """CVE-2020-1702, CVE-2023-25153: a manifest without end is given up at 4 MiB."""
    with MisbehavingRegistry(endless) as bad:
        assert await reason_of(client, store, places(bad.put("a", SMALL))) == "REGISTRY_ANSWER_TOO_LARGE"
        assert bad.sent_bytes < 60_000_000


def busy(handler: Handler) -> bool:
    """Every second answer is 429 or 503."""
    count = len(handler.registry.requests)
    if count % 2:
        handler.reply(429 if count % 4 == 1 else 503, b"", {"retry-after": "0"})
    return bool(count % 2)


async def test_pull_from_a_busy_registry_tries_again(client: RegistryClient, store: Store) -> None:
    """429 and 5xx pass; 4xx of other kinds do not, and are asked once."""
    with MisbehavingRegistry() as good:
        assert await reason_of(client, store, places(f"{good.host}/none")) == "IMAGE_NOT_FOUND"
        assert len(good.requests) == 1
    with MisbehavingRegistry(busy) as bad:
        await pull(client, store, places(bad.put("a", SMALL)))


def needs_basic(handler: Handler) -> bool:
    if handler.headers.get("authorization") == BASIC:
        return False
    handler.reply(401, b"", {"www-authenticate": 'Basic realm="test"'})
    return True


async def test_cve_2020_15157_credentials_do_not_follow_a_redirect(client: RegistryClient, store: Store) -> None:
    """CVE-2020-15157: blobs often live elsewhere; where a redirect leads, no credentials go."""
    with MisbehavingRegistry() as elsewhere:
        elsewhere.put("a", BIG)

        def redirecting(handler: Handler) -> bool:
            if handler.headers.get("authorization") != BASIC or "/blobs/" not in handler.path:
                return needs_basic(handler)
            handler.reply(307, b"", {"location": f"http://{elsewhere.host}{handler.path}"})
            return True

        with MisbehavingRegistry(redirecting) as first:
            reference = first.put("a", BIG)
            assert await reason_of(client, store, places(reference)) == "REGISTRY_UNAUTHORIZED"
            await pull(client, store, places(reference), AUTH)
            assert any("authorization" in {name.lower() for name in sent} for _, sent in first.requests)
        assert elsewhere.requests
        for _, sent in elsewhere.requests:
            assert not {"authorization", "cookie"} & {name.lower() for name in sent}


async def test_cve_2020_15157_mirror_never_sees_the_credentials_of_the_request(
    client: RegistryClient, store: Store
) -> None:
    """CVE-2020-15157: the kubelet's secret is for the image's registry, and a mirror that asks for it gets nothing."""
    with MisbehavingRegistry(needs_basic) as mirror, MisbehavingRegistry(needs_basic) as own:
        mirror.put("a", SMALL)
        where = places(own.put("a", SMALL), mirror.host)
        await pull(client, store, where, AUTH)
        assert mirror.requests
        assert not any("authorization" in {name.lower() for name in sent} for _, sent in mirror.requests)


async def test_token_server_gets_the_credentials_and_the_registry_the_token(
    client: RegistryClient, store: Store
) -> None:
    """The Bearer flow: scope and service asked for, the token kept for the next requests."""

    def answer(handler: Handler) -> bool:
        if handler.path.startswith("/token?"):
            right = handler.headers.get("authorization") == BASIC and "repository%3Aa%3Apull" in handler.path
            handler.reply(200 if right else 401, json.dumps({"token": "word", "expires_in": 300}).encode())
            return True
        if handler.headers.get("authorization") == "Bearer word":
            return False
        challenge = f'Bearer realm="http://{handler.registry.host}/token",service="test"'
        handler.reply(401, b"", {"www-authenticate": challenge})
        return True

    with MisbehavingRegistry(answer) as guarded:
        reference = guarded.put("a", SMALL)
        await pull(client, store, places(reference), AUTH)
        assert sum(path.startswith("/token") for path, _ in guarded.requests) == 1
        fresh = RegistryClient()
        with pytest.raises(OperationError) as caught:
            await fresh.resolve(places(reference), PLATFORM)
        assert caught.value.reason == "REGISTRY_UNAUTHORIZED"
        await fresh.aclose()


async def test_cve_2022_24778_token_of_one_is_not_used_for_another(client: RegistryClient, store: Store) -> None:
    """CVE-2022-24778: what one pod's credentials opened stays shut for a request without them."""
    with MisbehavingRegistry(needs_basic) as guarded:
        reference = guarded.put("a", SMALL)
        await pull(client, store, places(reference), AUTH)
        with pytest.raises(OperationError) as caught:
            await client.resolve(places(reference), PLATFORM)
        assert caught.value.reason == "REGISTRY_UNAUTHORIZED"


async def test_tls_is_verified_and_certs_d_is_read(store: Store, tmp_path: Path) -> None:
    """An unknown certificate is refused; the CA of `certs.d/host:port` makes it known; insecure asks no more."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", key, "-out", certificate, "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with LocalRegistry(tmp_path / "registry", tls=(certificate, key)) as registry:
        strict = Candidate(reference=parse_reference(f"{registry.host}/a:b"), host=registry.host, repository="a")
        unknowing, knowing = RegistryClient(), RegistryClient(certs_dirs=(tmp_path / "certs.d",))
        assert await reason_of(unknowing, store, (strict,)) == "REGISTRY_UNREACHABLE"
        (tmp_path / "certs.d" / registry.host).mkdir(parents=True)
        (tmp_path / "certs.d" / registry.host / "ca.crt").write_bytes(certificate.read_bytes())
        assert await reason_of(knowing, store, (strict,)) == "IMAGE_NOT_FOUND"
        assert await reason_of(unknowing, store, places(f"{registry.host}/a:b")) == "IMAGE_NOT_FOUND"
        await unknowing.aclose()
        await knowing.aclose()


# anyio's connect_tcp, cancelled as the connection is made, leaves the socket to the collector to close.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function _Selector:pytest.PytestUnraisableExceptionWarning")
async def test_r13_cancelled_pull_frees_everything_and_can_be_done_again(client: RegistryClient, store: Store) -> None:
    """R12, R13: cancelled anywhere, a pull leaves at most its partial blob, quickly; the next pull succeeds."""
    with MisbehavingRegistry() as good:
        where = places(good.put("a", BIG))
        for delay_s in (0.0, 0.005, 0.01, 0.02, 0.04, 0.08):
            begun_s = time.monotonic()
            with anyio.move_on_after(delay_s):
                await pull(client, store, where)
            assert time.monotonic() - begun_s < 5
            assert os.listdir(store.root / "unpacking") == []
            assert len(os.listdir(store.root / "ingest")) <= 1
        await pull(client, store, where)
    gc.collect()  # Such a socket is warned of here, and not in a later test.


async def test_pull_of_many_layers_at_once_keeps_its_bounds(client: RegistryClient, store: Store) -> None:
    """Every layer is asked for at once, as the node does; downloads and unpackings share the limits."""
    layers = [pack(archive({f"f{number}": os.urandom(5000)})) for number in range(30)]
    with MisbehavingRegistry() as good:
        where = [places(good.put(f"a{number}", layer)) for number, layer in enumerate(layers)]

        async def one(place: tuple[Candidate, ...]) -> None:
            image = await client.resolve(place, PLATFORM)
            await client.fetch_blob(image.sources, image.layers[0], store, lambda _: None)
            await store.apply_layer(image.layers[0])

        async with anyio.create_task_group() as group:
            for place in where:
                group.start_soon(one, place)
    assert len(store.list_layers()) == 30


def is_alive(process: psutil.Process) -> bool:
    """Whether a process runs, and is no zombie."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


PULLER = """
import os, sys, anyio
from pathlib import Path
from crio_core.image.platform import platform_of_machine
from crio_core.image.reference import parse_reference
from crio_core.image.registries import RegistriesConfig, candidates
from crio_io.registry.client import RegistryClient
from crio_io.storage.store import Store

async def main():
    store, client = Store(Path(sys.argv[1])), RegistryClient()
    await store.open()
    where = candidates(RegistriesConfig(), parse_reference(sys.argv[2]))
    image = await client.resolve(where, platform_of_machine(os.uname().machine))
    await client.fetch_blob(image.sources, image.layers[0], store, lambda step: print(step.received_bytes, flush=True))
    await store.apply_layer(image.layers[0])

anyio.run(main)
"""


def half_then_waiting(handler: Handler) -> bool:
    """Blobs come to their middle, and the rest only when the test ends; asked for a range, the rest comes at once."""
    body, _ = handler.registry.content.get(handler.path, (b"", ""))
    if BIG.digest not in handler.path or handler.headers.get("range"):
        return False
    handler.reply(200, body[: len(body) // 2], length=len(body))
    handler.registry.stopped.wait(20)
    handler.close_connection = True
    return True


async def test_r12_killed_server_leaves_no_process_and_its_blob_is_gone_on_with(store: Store) -> None:
    """R12, R11: after kill -9 in the middle of a pull the helpers end by themselves, and half the blob is there."""
    with MisbehavingRegistry(half_then_waiting) as slow:
        reference = slow.put("a", BIG)
        command = [sys.executable, "-c", PULLER, str(store.root), reference]
        puller = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert puller.stdout is not None
        await anyio.to_thread.run_sync(puller.stdout.readline)
        helpers = psutil.Process(puller.pid).children(recursive=True)
        puller.kill()
        puller.wait()
        puller.stdout.close()
        assert helpers
        await wait_meanwhile("the end of its helpers", lambda: not any(is_alive(helper) for helper in helpers))
        assert store.list_layers() == ()
        again = Store(store.root)
        await again.open()
        await again.sweep(blobs_max_age_s=3600)
        before_bytes = slow.sent_bytes
        client = RegistryClient()
        await pull(client, again, places(reference))
        assert slow.sent_bytes - before_bytes < len(BIG.blob) * 0.9
        await client.aclose()
        await again.aclose()


def endless_headers(handler: Handler) -> bool:
    """Blobs have headers that never end, a few bytes at a time."""
    if BIG.digest not in handler.path:
        return False
    handler.send(b"HTTP/1.1 200 OK\r\n")
    while not handler.close_connection and not handler.registry.stopped.wait(0.05):
        handler.send(b"x: y\r\n")
    handler.close_connection = True
    return True


async def test_r13_headers_that_never_end_hold_no_slot(
    client: RegistryClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R13: some bytes always come, none of them the blob's; 38 of these would have stopped every download."""
    monkeypatch.setattr(transport, "CONNECT_S", 0.1)
    with MisbehavingRegistry(endless_headers) as bad, MisbehavingRegistry() as good:
        reference = bad.put("a", BIG)
        assert await reason_of(client, store, places(reference)) == "REGISTRY_TIMEOUT"
        await pull(client, store, places(good.put("a", BIG), bad.host))


async def test_a_session_that_credentials_began_is_not_the_next_pulls(client: RegistryClient, store: Store) -> None:
    """A registry that sets a cookie would serve a private image to whoever pulls next, with or without credentials."""

    def with_sessions(handler: Handler) -> bool:
        if "session=" in handler.headers.get("cookie", ""):
            return False
        if handler.headers.get("authorization") == BASIC:
            body, kind = handler.registry.content[handler.path]
            handler.reply(200, body, {"content-type": kind, "set-cookie": "session=secret; Path=/"})
        else:
            handler.reply(401, b"", {"www-authenticate": 'Basic realm="x"'})
        return True

    with MisbehavingRegistry(with_sessions) as private:
        reference = private.put("a", SMALL)
        await client.resolve(places(reference), PLATFORM, AUTH)
        assert await reason_of(client, store, places(reference)) == "REGISTRY_UNAUTHORIZED"


async def test_a_full_disk_in_the_midst_of_a_write_spoils_nothing(
    client: RegistryClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a batch is on the disk: what is hashed is what is there, and the next source is asked for the rest."""
    real, calls = os.pwrite, iter(range(100))

    def half_then_full(fd: int, data: Any, offset: int) -> int:
        match next(calls):
            case 0:
                return real(fd, data[: len(data) // 2], offset)
            case 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            case _:
                return real(fd, data, offset)

    with MisbehavingRegistry() as good, MisbehavingRegistry() as mirror:
        good.put("a", BIG)
        mirror.content = good.content
        image = await client.resolve(places(good.put("a", BIG), mirror.host), PLATFORM)
        monkeypatch.setattr(os, "pwrite", half_then_full)
        await client.fetch_blob(image.sources, image.layers[0], store, lambda _: None)
        asked = [headers.get("range", "") for path, headers in good.requests if BIG.digest in path]
        assert len(asked) == 1 and asked[0].startswith("bytes=")


async def test_an_insecure_registry_whose_tls_port_says_nothing_is_asked_by_http(
    client: RegistryClient, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall drops what nobody listens to; a plain server may wait for the rest of what it takes for a request."""
    monkeypatch.setattr(transport, "CONNECT_S", 0.5)
    with MisbehavingRegistry(mute_to_tls=True) as plain:
        await pull(client, store, places(plain.put("a", SMALL)))


async def test_hosts_that_redirects_name_are_not_kept_without_end(client: RegistryClient) -> None:
    """Each layer may lead to five more of them; their TLS settings are shared, and only so many are kept."""
    transports = client._transport
    made = [await transports._client(f"h{number}.example", insecure=False) for number in range(100)]
    assert len({id(one._transport._pool._ssl_context) for one in made}) == 1  # type: ignore[attr-defined]
    assert len(transports._retired) == transport.RETIRED_MAX
    assert [one.is_closed for one in made] == [True] * (100 - transport.RETIRED_MAX - transport.HOSTS_MAX) + [False] * (
        transport.RETIRED_MAX + transport.HOSTS_MAX
    )


@pytest.mark.parametrize("challenge", ['Bearer realm="https://[",service="x"', 'Bearer realm="http://h:99999999/"'])
async def test_a_mirror_with_a_senseless_challenge_is_passed_over(
    client: RegistryClient, store: Store, challenge: str
) -> None:
    """What it says is its own trouble."""

    def senseless(handler: Handler) -> bool:
        handler.reply(401, b"", {"www-authenticate": challenge})
        return True

    with MisbehavingRegistry(senseless) as bad, MisbehavingRegistry() as good:
        await pull(client, store, places(good.put("a", SMALL), bad.host))
