"""Pulls through the whole server: progress, pulls of many at once, kill -9 in the middle, and a signature policy."""

import base64
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grpc import StatusCode

from crio_io.storage.layer_info import blob_name
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Refused, Site
from tests.integration.misbehaving_registry import Handler, MisbehavingRegistry
from tests.integration.registry_fixture import Layer, archive, pack
from tests.integration.storage_fixture import descriptor
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration
POINTS = 20
LAYER = pack(archive({f"f{number}": os.urandom(1024 * 1024) for number in range(24)}), "none")


class Held(MisbehavingRegistry):
    """Sends the first `limit_bytes` of its layers' blobs, one layer after the other, and the rest when it is let go."""

    def __init__(self, *layers: Layer) -> None:
        super().__init__(self._hold)
        self.layers = layers
        self.size_bytes = sum(len(layer.blob) for layer in layers)
        self.limit_bytes = self.size_bytes
        self.released = threading.Event()
        self.starts: list[int] = []
        self.asked_bytes = 0

    def _hold(self, handler: Handler) -> bool:
        left_bytes = self.limit_bytes
        for layer in self.layers:
            if handler.path.endswith(layer.digest):
                self._send(handler, layer.blob, max(0, min(left_bytes, len(layer.blob))))
                return True
            left_bytes -= len(layer.blob)
        return False

    def _send(self, handler: Handler, blob: bytes, limit_bytes: int) -> None:
        ranged = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("range", ""))
        start = int(ranged[1]) if ranged else 0
        self.starts.append(start)
        self.asked_bytes += len(blob) - start
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("content-range", f"bytes {start}-{len(blob) - 1}/{len(blob)}")
        handler.send_header("content-length", str(len(blob) - start))
        handler.end_headers()
        middle = max(start, limit_bytes)
        handler.send(blob[start:middle])
        if middle < len(blob):
            while not (self.released.wait(0.05) or self.stopped.is_set()):
                pass
            handler.send(blob[middle:])

    def hold_at(self, limit_bytes: int) -> None:
        """From now on send only so much."""
        self.limit_bytes = limit_bytes
        self.released.clear()
        self.starts.clear()
        self.asked_bytes = 0


@pytest.fixture
def held() -> Iterator[Held]:
    registry = Held(LAYER)
    with registry:
        yield registry


def spec(reference: str) -> pb.ImageSpec:
    return pb.ImageSpec(image=reference)


def blob(crio: Crio, layer: Layer) -> Path:
    """Where the server keeps what has come of a blob."""
    return crio.site.marks.root / "storage" / "ingest" / blob_name(descriptor(layer))


def came_bytes(crio: Crio, layer: Layer) -> int:
    path = blob(crio, layer)
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def wait_until_came(crio: Crio, size_bytes: int) -> None:
    """Wait until so much is on disk; the server writes by the megabyte."""
    wait_for(f"{size_bytes} bytes", lambda: came_bytes(crio, LAYER) >= size_bytes)


def store_holds(crio: Crio) -> set[str]:
    """Names of what is in the store, without what every store has."""
    root = crio.site.marks.root / "storage"
    rooms = ("ingest", "unpacking", "layers", "trash")
    return {f"{room}/{name}" for room in rooms for name in os.listdir(root / room)} - {"layers/empty"}


def test_pull_tells_of_each_layer_while_it_runs(own_crio: Crio, held: Held) -> None:
    """F1: bytes, rate and step of each layer, for `crioctl image pull`, and for `crioctl explain` of its reference."""
    reference = held.put("slow", LAYER)
    held.hold_at(len(LAYER.blob) // 2)
    pull = own_crio.client.begin(pb.PullImageRequest(image=spec(reference)))

    def told() -> dict[str, object] | None:
        info = own_crio.client(pb.ImageStatusRequest(image=spec(reference), verbose=True)).info
        [layer] = [one for found in json.loads(info.get("pulls", "[]")) for one in found["layers"]] or [None]
        return layer if layer and layer["receivedBytes"] > len(LAYER.blob) // 3 else None

    layer = wait_for("a pull that has come half-way", told)
    assert layer is not None
    assert (layer["digest"], layer["state"], layer["totalBytes"]) == (LAYER.digest, "fetching", len(LAYER.blob))
    assert layer["bytesPerS"] and layer["host"] == held.host
    creating = json.loads(own_crio.client(pb.StatusRequest(verbose=True)).info["creating"])
    [found] = [one for one in creating if one["id"] == reference]
    assert found["layers"][0]["receivedBytes"] >= layer["receivedBytes"]
    held.released.set()
    assert pull.result().image_ref
    done = own_crio.client(pb.ImageStatusRequest(image=spec(reference), verbose=True))
    assert "pulls" not in done.info and done.image.id
    own_crio.client(pb.RemoveImageRequest(image=spec(reference)))


def test_ten_pulls_of_one_image_fetch_it_once_r14_r15(own_crio: Crio, held: Held) -> None:
    """R14, R15: every caller gets one answer, the same; each blob is fetched by one of them, and nobody waits after."""
    reference = held.put("many", LAYER)
    held.hold_at(len(LAYER.blob) // 2)
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(own_crio.client, pb.PullImageRequest(image=spec(reference))) for _ in range(10)]

        def waiting() -> bool:
            creating = json.loads(own_crio.client(pb.StatusRequest(verbose=True)).info["creating"])
            return any(one["callers"].get("pull") == 10 for one in creating)

        wait_for("ten callers of one pull", waiting)
        held.released.set()
        assert len({answer.result().image_ref for answer in answers}) == 1
    assert held.starts == [0]
    assert json.loads(own_crio.client(pb.StatusRequest(verbose=True)).info["creating"]) == []
    own_crio.client(pb.RemoveImageRequest(image=spec(reference)))


@pytest.mark.slow
def test_kill_9_at_points_of_a_blob_r12(own_crio: Crio, held: Held) -> None:
    """R12: the next pull succeeds with no help, goes on where the first one was, and no half layer is ever seen."""
    reference = held.put("killed", LAYER)
    before = store_holds(own_crio)
    size_bytes = len(LAYER.blob)
    for point in (1, 2, POINTS // 2, POINTS - 1, POINTS):
        limit_bytes = size_bytes * point // POINTS
        held.hold_at(limit_bytes)
        pull = own_crio.client.begin(pb.PullImageRequest(image=spec(reference)))
        if point < POINTS:
            wait_until_came(own_crio, limit_bytes - 1024 * 1024)
        else:
            wait_until_came(own_crio, 1)
        kept_bytes = came_bytes(own_crio, LAYER)
        own_crio.end(signal.SIGKILL)
        pull.cancel()
        held.hold_at(size_bytes)
        own_crio.start()
        assert not own_crio.client(pb.ImageStatusRequest(image=spec(reference))).HasField("image")
        own_crio.pull(reference)
        again_bytes = limit_bytes - held.starts[0]
        assert held.starts[0] >= kept_bytes, "what was on disk is not fetched again"
        if point == POINTS - 1:
            assert again_bytes <= size_bytes * 5 // 100
        assert len(store_holds(own_crio) - before) == 1, "one layer, and nothing else"
        own_crio.client(pb.RemoveImageRequest(image=spec(reference)))
        wait_for("the layer to go", lambda: store_holds(own_crio) == before)


SIX = tuple(pack(archive({f"l{number}": os.urandom(4 * 1024 * 1024)}), "none") for number in range(6))


def there_bytes(crio: Crio) -> int:
    """How much of the six blobs is on disk, as they came or as layers."""
    layers = crio.site.marks.root / "storage" / "layers"
    blobs = {json.loads(path.read_text())["blob"] for path in layers.glob("*/layer.json")}
    return sum(len(layer.blob) if layer.digest in blobs else came_bytes(crio, layer) for layer in SIX)


@pytest.mark.slow
def test_kill_9_at_twenty_points_of_a_pull_of_six_layers_r12(own_crio: Crio) -> None:
    """R12: layers and half layers of a pull that was killed are gone on with: at most 5 % is fetched again."""
    with Held(*SIX) as registry:
        reference = registry.put("six", *SIX)
        before = store_holds(own_crio)
        for point in range(1, POINTS + 1):
            limit_bytes = min(registry.size_bytes * point // POINTS, registry.size_bytes - 1)
            registry.hold_at(limit_bytes)
            pull = own_crio.client.begin(pb.PullImageRequest(image=spec(reference)))
            # All are asked for by now, so that no request of this server is counted as one of the next.
            wait_for("six requests", lambda: len(registry.starts) == len(SIX))
            wait_for(f"point {point}", lambda: there_bytes(own_crio) >= registry.limit_bytes - 1024 * 1024)
            own_crio.end(signal.SIGKILL)
            pull.cancel()
            registry.hold_at(registry.size_bytes)
            own_crio.start()
            assert not own_crio.client(pb.ImageStatusRequest(image=spec(reference))).HasField("image")
            own_crio.pull(reference)
            again_bytes = registry.asked_bytes - (registry.size_bytes - limit_bytes)
            assert again_bytes <= registry.size_bytes * 5 // 100, f"at point {point}"
            assert len(store_holds(own_crio) - before) == len(SIX), "six layers, and nothing else"
            own_crio.client(pb.RemoveImageRequest(image=spec(reference)))
            wait_for("the layers to go", lambda: store_holds(own_crio) == before)


PRIVATE = pack(archive({"secret": b"private"}))
OTHERS = pack(archive({"lie": b"public"}))
BASIC = "Basic " + base64.b64encode(b"user:word").decode()


def test_cve_2022_24778_private_layer_is_not_usable_without_its_credentials(own_crio: Crio) -> None:
    """CVE-2022-24778: neither a pull without credentials nor a public image naming the layer gets what is cached."""

    def guarded(handler: Handler) -> bool:
        if "/private/" not in handler.path or handler.headers.get("authorization") == BASIC:
            return False
        handler.reply(401, b"", {"www-authenticate": 'Basic realm="test"'})
        return True

    with MisbehavingRegistry(guarded) as registry:
        private = registry.put("private", PRIVATE)
        auth = pb.AuthConfig(username="user", password="word")
        own_crio.client(pb.PullImageRequest(image=spec(private), auth=auth))
        refused = own_crio.client.refusal(pb.PullImageRequest(image=spec(private)))
        assert refused.code is StatusCode.UNAUTHENTICATED
        wrong = pb.AuthConfig(username="user", password="guess")
        refused = own_crio.client.refusal(pb.PullImageRequest(image=spec(private), auth=wrong))
        assert refused.code is StatusCode.UNAUTHENTICATED
        public = registry.put("public", OTHERS, diff_ids=(PRIVATE.diff_id,))
        refused = own_crio.client.refusal(pb.PullImageRequest(image=spec(public)))
        assert refused.code is StatusCode.DATA_LOSS
        assert not own_crio.client(pb.ImageStatusRequest(image=spec(public))).HasField("image")
        own_crio.client(pb.RemoveImageRequest(image=spec(private)))


def test_an_image_on_shared_layers_has_its_true_size_after_a_restart(own_crio: Crio) -> None:
    """The kubelet frees space by these numbers."""
    shared, own = SIX[0], SIX[1]
    with MisbehavingRegistry() as registry:
        base, app = registry.put("base", shared), registry.put("app", shared, own)
        own_crio.pull(base)
        own_crio.restart()
        own_crio.pull(app)
        sizes = [own_crio.client(pb.ImageStatusRequest(image=spec(one))).image.size for one in (base, app)]
        assert sizes[0] >= 4 * 1024 * 1024 and sizes[1] >= 8 * 1024 * 1024
        asked = [path for path, _ in registry.requests if shared.digest in path]
        assert len(asked) == 1, "its blob is known, also after a restart"
        for one in (base, app):
            own_crio.client(pb.RemoveImageRequest(image=spec(one)))


def test_r16_pinned_images_are_shown_as_pinned(site: Site) -> None:
    """R16: by tag, by digest, and the pause image: what is shown as pinned is not collected."""
    with MisbehavingRegistry() as registry:
        tagged, digested = registry.put("tagged", PRIVATE), registry.put("digested", OTHERS)
        with Crio(site, "--pinned-images", f"{registry.host}/digested@*", "--pause-image", tagged) as crio:
            repo_digest = crio.client(pb.PullImageRequest(image=spec(digested))).image_ref
            status = crio.client(pb.ImageStatusRequest(image=spec(repo_digest))).image
            crio.client(pb.RemoveImageRequest(image=spec(repo_digest)))
            crio.pull(status.repo_digests[0])
            crio.pull(tagged)
            crio.pull(crio.images.busybox)
            images = crio.client(pb.ListImagesRequest()).images
            pinned = {one.id for one in images if one.pinned}
            names = {name for one in images if one.pinned for name in (*one.repo_tags, *one.repo_digests)}
            assert len(pinned) == 2
            assert tagged in names and status.repo_digests[0] in names


def test_signature_policy_decides_about_pulls_by_namespace(site: Site) -> None:
    """signature_policy and signature_policy_dir of crio.conf, with the words by which a kubelet knows the reason."""
    policy, policies = site.directory / "policy.json", site.directory / "policies"
    policies.mkdir()
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    (policies / "strict.json").write_text(json.dumps({"default": [{"type": "reject"}]}))
    flags = ("--signature-policy", str(policy), "--signature-policy-dir", str(policies))
    with Crio(site, *flags) as crio:
        pod = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="p", uid="u", namespace="strict"))
        request = pb.PullImageRequest(image=spec(crio.images.busybox), sandbox_config=pod)
        refused = crio.client.attempt(request)
        assert isinstance(refused, Refused) and refused.code is StatusCode.PERMISSION_DENIED
        assert refused.message.startswith("SignatureValidationFailed")
        crio.pull(crio.images.busybox)
