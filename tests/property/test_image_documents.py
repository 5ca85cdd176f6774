"""Manifests, indexes and configurations: exactly one meaning each, bounded, or refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import OperationError
from crio_core.image.config import LAYERS_MAX, parse_image_config
from crio_core.image.digest import digest_of
from crio_core.image.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_BYTES_MAX,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    parse_document,
)
from crio_core.image.platform import Platform
from crio_core.image.policy import ATTACHMENT_KEY, ATTACHMENT_TYPE, Kind, parse_attachments, parse_payload
from crio_core.image.resolved import match_layers

SHA = "sha256:" + "a" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": SHA, "size": 10}
LAYER: dict[str, Any] = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": SHA, "size": 10}
MANIFEST: dict[str, Any] = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
INDEX: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": OCI_INDEX,
    "manifests": [
        {"mediaType": OCI_MANIFEST, "digest": SHA, "size": 5, "platform": {"os": "linux", "architecture": "amd64"}}
    ],
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def body(document: object) -> bytes:
    return json.dumps(document).encode()


def refused(document: object, content_type: str = "") -> str:
    with pytest.raises(OperationError) as caught:
        parse_document(document if isinstance(document, bytes) else body(document), content_type)
    return caught.value.reason


def test_parse_reads_both_kinds_of_both_families() -> None:
    """OCI and Docker differ only in their media types."""
    assert isinstance(parse_document(body(MANIFEST), OCI_MANIFEST), Manifest)
    assert isinstance(parse_document(body({**MANIFEST, "mediaType": DOCKER_MANIFEST}), DOCKER_MANIFEST), Manifest)
    assert isinstance(parse_document(body(INDEX), OCI_INDEX + "; charset=utf-8"), Index)
    assert isinstance(parse_document(body({**INDEX, "mediaType": DOCKER_LIST}), DOCKER_LIST), Index)
    silent = {key: value for key, value in MANIFEST.items() if key != "mediaType"}
    assert isinstance(parse_document(body(silent), "application/octet-stream"), Manifest)
    assert parse_document(body(silent), DOCKER_MANIFEST).media_type == DOCKER_MANIFEST


def test_cve_2021_41190_document_of_two_kinds_is_refused() -> None:
    """CVE-2021-41190: a body that two readers read differently runs an image that nobody checked."""
    assert refused({**MANIFEST, "manifests": []}) == "MANIFEST_AMBIGUOUS"
    assert refused({**INDEX, "layers": []}) == "MANIFEST_AMBIGUOUS"
    assert refused({**INDEX, "config": CONFIG}) == "MANIFEST_AMBIGUOUS"
    assert refused(MANIFEST, OCI_INDEX) == "MANIFEST_AMBIGUOUS"
    assert refused(MANIFEST, DOCKER_MANIFEST) == "MANIFEST_AMBIGUOUS"
    assert refused({**MANIFEST, "mediaType": OCI_INDEX}) == "MANIFEST_AMBIGUOUS"
    assert refused({"schemaVersion": 2, "manifests": []}, OCI_MANIFEST) == "MANIFEST_AMBIGUOUS"
    twice = body(MANIFEST).replace(b'"schemaVersion"', b'"layers": [], "schemaVersion"', 1)
    assert refused(twice) == "MANIFEST_INVALID"


def test_cve_2020_15157_foreign_layer_is_refused() -> None:
    """CVE-2020-15157: a layer that names its own URLs is fetched from nowhere; `urls` of others are never read."""
    for media_type in (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ):
        assert refused({**MANIFEST, "layers": [{**LAYER, "mediaType": media_type}]}) == "FOREIGN_LAYER"
    found = parse_document(body({**MANIFEST, "layers": [{**LAYER, "urls": ["http://evil.example/x"]}]}))
    assert "evil" not in repr(found)


def test_cve_2022_24778_encrypted_layer_is_refused() -> None:
    """CVE-2022-24778: what cannot be decrypted here is never taken for content."""
    media_type = LAYER["mediaType"] + "+encrypted"
    assert refused({**MANIFEST, "layers": [{**LAYER, "mediaType": media_type}]}) == "ENCRYPTED_LAYER"


def test_cve_2020_1702_document_above_the_limit_is_refused() -> None:
    """CVE-2020-1702, CVE-2023-25153: nothing is parsed beyond 4 MiB, no list is longer than its bound."""
    assert refused(body(MANIFEST) + b" " * MANIFEST_BYTES_MAX) == "MANIFEST_TOO_LARGE"
    assert refused({**MANIFEST, "layers": [LAYER] * 600}) == "MANIFEST_INVALID"
    assert refused({**INDEX, "manifests": INDEX["manifests"] * 2000}) == "MANIFEST_INVALID"
    assert refused(b"[" * 100_000) == "MANIFEST_INVALID"
    assert refused({**MANIFEST, "config": {**CONFIG, "size": MANIFEST_BYTES_MAX + 1}}) == "SIZE_INVALID"


@pytest.mark.parametrize("size", [-1, 2**60, 1.5, "10", None, True])
def test_parse_of_a_size_that_is_none_is_refused(size: object) -> None:
    """Sizes bound what is fetched and written."""
    assert refused({**MANIFEST, "layers": [{**LAYER, "size": size}]}) == "SIZE_INVALID"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schemaVersion": 1}, "MANIFEST_VERSION"),
        ({"schemaVersion": True}, "MANIFEST_VERSION"),
        ({"mediaType": "application/x"}, "MANIFEST_TYPE_UNKNOWN"),
        ({"mediaType": 7}, "MANIFEST_INVALID"),
        ({"layers": None}, "MANIFEST_INVALID"),
        ({"layers": [7]}, "MANIFEST_INVALID"),
        ({"config": None}, "MANIFEST_INVALID"),
        ({"config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}}, "NOT_AN_IMAGE"),
        ({"layers": [{**LAYER, "mediaType": "text/html"}]}, "LAYER_TYPE_UNKNOWN"),
        ({"layers": [{**LAYER, "digest": "sha256:../x"}]}, "INVALID_FIELD"),
    ],
)
def test_parse_of_a_wrong_member_is_refused_by_name(change: dict[str, object], reason: str) -> None:
    """Each refusal says what is wrong in a word that programs can compare."""
    assert refused({**MANIFEST, **change}) == reason


@given(json_values)
def test_parse_of_any_json_gives_a_document_or_a_refusal(value: object) -> None:
    """Whatever a registry serves: no other exception escapes."""
    for parse in (parse_document, parse_image_config):
        try:
            parse(body(value))
        except OperationError:
            continue


@given(st.sampled_from(["config", "layers", "mediaType", "schemaVersion", "manifests"]), json_values)
def test_parse_of_a_manifest_with_any_member_replaced_never_breaks(member: str, value: object) -> None:
    """Near-valid documents reach the deeper checks."""
    try:
        parse_document(body({**MANIFEST, member: value}))
    except OperationError:
        return


@given(st.binary(max_size=200))
def test_parse_of_any_bytes_gives_a_refusal(data: bytes) -> None:
    """Not even JSON."""
    for parse in (parse_document, parse_image_config):
        try:
            parse(data)
        except OperationError:
            continue


def test_config_reads_what_a_runtime_acts_on() -> None:
    """Docker's and OCI's configuration have the same members."""
    found = parse_image_config(
        body(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {
                    "User": "1000:1000",
                    "Env": ["A=b"],
                    "Entrypoint": ["/e"],
                    "Cmd": "single",
                    "Volumes": {"/v": {}, "/a": {}},
                    "Labels": {"x": "y"},
                    "ExposedPorts": {"80/tcp": {}},
                    "StopSignal": "SIGQUIT",
                    "WorkingDir": "/w",
                },
                "rootfs": {"type": "layers", "diff_ids": [SHA]},
                "history": [{"created_by": "x", "empty_layer": True}],
            }
        )
    )
    assert (found.user, found.env, found.entrypoint, found.cmd) == ("1000:1000", ("A=b",), ("/e",), ("single",))
    assert (found.volumes, dict(found.labels), found.exposed_ports) == (("/a", "/v"), {"x": "y"}, ("80/tcp",))
    assert (found.stop_signal, found.working_dir, found.history[0].empty_layer) == ("SIGQUIT", "/w", True)
    assert str(found.diff_ids[0]) == SHA


@pytest.mark.parametrize(
    "document",
    [{"config": {"Env": ["a\0b"]}}, {"config": {"Env": {}}}, {"config": []}, {"config": {"User": 7}},
     {"rootfs": {"type": "other"}}, {"rootfs": {"type": "layers", "diff_ids": ["x"]}}, {"history": [1]}, []],
)  # fmt: skip
def test_config_with_a_member_of_the_wrong_kind_is_refused(document: object) -> None:
    """A stranger wrote it: kinds are checked before anything is used."""
    with pytest.raises(OperationError):
        parse_image_config(body(document))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8"])
def test_text_that_no_answer_can_carry_is_refused_when_it_comes(encoding: str) -> None:
    """Half of a surrogate pair, or another encoding: later it would fail where nobody knows what it is about."""
    user = "a" if encoding == "utf-16" else "\ud800"
    config = json.dumps({**IMAGE_CONFIG, "config": {"User": user}}).encode(encoding)
    with pytest.raises(OperationError) as caught:
        parse_image_config(config)
    assert caught.value.reason == "IMAGE_CONFIG_INVALID"
    platform = {"os": "linux", "architecture": user}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{"platform": platform}]}
    assert refused(json.dumps(index).encode(encoding)) == "MANIFEST_INVALID"


def test_layers_and_diff_ids_must_match_and_the_machine_too() -> None:
    """An image for another machine, or with layers that its configuration does not know, is not started."""
    manifest = parse_document(body(MANIFEST))
    assert isinstance(manifest, Manifest)
    config = parse_image_config(
        body({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [SHA]}})
    )
    layers = match_layers(manifest, config, Platform(architecture="amd64"))
    assert [str(layer.diff_id) for layer in layers] == [SHA]
    with pytest.raises(OperationError, match="this machine runs"):
        match_layers(manifest, config, Platform(architecture="arm64"))
    with pytest.raises(OperationError, match="diff ids"):
        match_layers(manifest, parse_image_config(b"{}"), Platform(architecture="amd64"))
    assert digest_of(b"").algorithm == "sha256"


BAD_DIGESTS = (
    "sha256:../../../../etc/passwd",
    "sha256:" + "A" * 64,
    "sha256:" + "a" * 63,
    "md5:" + "a" * 32,
    "",
    7,
    None,
)


def with_digest(document: Any, *way: str | int, digest: object) -> bytes:
    """The document with another digest at a place in it."""
    copy = json.loads(json.dumps(document))
    here = copy
    for step in way[:-1]:
        here = here[step]
    here[way[-1]] = digest
    return json.dumps(copy).encode()


PAYLOAD = {
    "critical": {
        "type": "cosign container image signature",
        "identity": {"docker-reference": "h.example/a:1"},
        "image": {"docker-manifest-digest": SHA},
    },
    "optional": {},
}
ATTACHMENTS = {
    "layers": [{"mediaType": ATTACHMENT_TYPE, "digest": SHA, "size": 5, "annotations": {ATTACHMENT_KEY: "AAAA"}}]
}
IMAGE_CONFIG = {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [SHA]}}
DIGEST_ENTRIES: tuple[tuple[Callable[[bytes], object], Any, tuple[str | int, ...]], ...] = (
    (parse_document, INDEX, ("manifests", 0, "digest")),
    (parse_document, MANIFEST, ("config", "digest")),
    (parse_document, MANIFEST, ("layers", 0, "digest")),
    (parse_image_config, IMAGE_CONFIG, ("rootfs", "diff_ids", 0)),
    (lambda body: parse_payload(body, Kind.SIGSTORE), PAYLOAD, ("critical", "image", "docker-manifest-digest")),
    (parse_attachments, ATTACHMENTS, ("layers", 0, "digest")),
)


@pytest.mark.parametrize("entry", range(len(DIGEST_ENTRIES)))
def test_cve_2024_3727_digests_are_checked_wherever_one_enters(entry: int) -> None:
    """CVE-2024-3727: index, manifest, configuration and what was signed; each form would be a path or a URL later."""
    parse, document, way = DIGEST_ENTRIES[entry]
    assert parse(with_digest(document, *way, digest=SHA))
    for digest in BAD_DIGESTS:
        with pytest.raises(OperationError):
            parse(with_digest(document, *way, digest=digest))


def test_image_with_more_layers_than_can_be_mounted_is_refused_when_it_is_pulled() -> None:
    """Said by the pull, with the number; not by each container that is made of the image."""
    most = parse_document(json.dumps(MANIFEST | {"layers": [LAYER] * LAYERS_MAX}).encode())
    assert isinstance(most, Manifest) and len(most.layers) == LAYERS_MAX
    with pytest.raises(OperationError, match=str(LAYERS_MAX)):
        parse_document(json.dumps(MANIFEST | {"layers": [LAYER] * (LAYERS_MAX + 1)}).encode())
