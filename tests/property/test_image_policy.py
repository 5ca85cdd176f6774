"""Signature policies as text, and what they decide: containers-policy.json(5)."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import OperationError
from crio_core.image.digest import digest_of
from crio_core.image.lookaside import Section, attachment_tag, parse_lookasides, signature_url
from crio_core.image.policy import (
    Identity,
    Kind,
    Match,
    accepts,
    parse_attachments,
    parse_payload,
    parse_policy,
    scopes_of,
)
from crio_core.image.reference import parse_reference

ACCEPT = {"type": "insecureAcceptAnything"}
REJECT = {"type": "reject"}
GPG = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}
DIGEST = digest_of(b"manifest")


def policy(document: object) -> Any:
    return parse_policy("policy.json", json.dumps(document).encode())


def test_the_most_precise_scope_decides() -> None:
    """A namespace's rule must win over its host's, and the host's over wildcards and defaults."""
    scopes = ["r.example.com:5000/a/b@" + str(DIGEST), "r.example.com:5000/a/b", "r.example.com:5000/a"]
    scopes += ["r.example.com:5000", "*.example.com", "*.com", ""]
    reference = parse_reference(f"r.example.com:5000/a/b@{DIGEST}")
    for count in range(len(scopes)):
        left = {scope: [REJECT] for scope in scopes[count:]}
        found = policy({"default": [ACCEPT], "transports": {"docker": left}}).requirements(reference)
        assert found[0] == scopes[count]
    assert policy({"default": [ACCEPT]}).requirements(reference)[0] == "default"


def test_scopes_of_a_tag_begin_with_the_tag_and_know_no_port_less_host() -> None:
    """containers-policy.json(5): a host with a port is another host than the one without."""
    found = scopes_of(parse_reference("localhost:5000/a:1"))
    assert found == ("localhost:5000/a:1", "localhost:5000/a", "localhost:5000", "")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"default": []},
        {"default": [ACCEPT], "more": 1},
        {"default": [{"type": "insecureAcceptAnything", "keyPath": "/k"}]},
        {"default": [{"type": "signedBaseLayer"}]},
        {"default": [{"type": "signedBy", "keyPath": "/k"}]},
        {"default": [{**GPG, "keyType": "signedByGPGKeys"}]},
        {"default": [{**GPG, "keyData": "aaaa"}]},
        {"default": [{**GPG, "keyPath": "relative"}]},
        {"default": [{**GPG, "signedIdentity": {"type": "matchAnything"}}]},
        {"default": [{**GPG, "signedIdentity": {"type": "exactReference"}}]},
        {"default": [{"type": "sigstoreSigned", "keyData": "not base64!"}]},
        {"default": [{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r"}]},
        {"default": [{"type": "sigstoreSigned", "fulcio": {}}]},
        {"default": [ACCEPT], "transports": {"docker": {"a*b": [ACCEPT]}}},
    ],
)
def test_policy_that_is_not_understood_is_refused_whole(document: object) -> None:
    """What an unknown member was meant to restrict is unknown too: going on without it could accept anything."""
    with pytest.raises(OperationError) as caught:
        policy(document)
    assert caught.value.reason == "POLICY_INVALID" and "policy.json" in caught.value.message


def test_policy_with_a_member_twice_is_refused() -> None:
    """Readers differ in which of the two they take."""
    with pytest.raises(OperationError):
        parse_policy("p", b'{"default":[{"type":"reject"}],"default":[{"type":"insecureAcceptAnything"}]}')


@pytest.mark.parametrize(
    ("match", "intended", "signed", "accepted"),
    [
        ("matchExact", "h/a:1", "h/a:1", True),
        ("matchExact", "h/a:1", "h/a:2", False),
        ("matchExact", f"h/a@{DIGEST}", f"h/a@{DIGEST}", False),
        ("matchRepoDigestOrExact", "h/a:1", "h/a:1", True),
        ("matchRepoDigestOrExact", "h/a:1", "h/a:2", False),
        ("matchRepoDigestOrExact", "h/a:1", "h/a", False),
        ("matchRepoDigestOrExact", f"h/a@{DIGEST}", "h/a:2", True),
        ("matchRepoDigestOrExact", f"h/a@{DIGEST}", "h/b:2", False),
        ("matchRepository", "h/a:1", "h/a:2", True),
        ("matchRepository", "h/a:1", "h/a", True),
        ("matchRepository", "h/a:1", "h/b:1", False),
        ("matchRepository", "h/a:1", "a:1", False),
    ],
)
def test_identity_in_a_signature_must_be_the_one_asked_for(
    match: str, intended: str, signed: str, accepted: bool
) -> None:
    """A good signature of another image, or of another tag, must not let this one pass."""
    assert accepts(Identity(match=Match(match)), _hosted(intended), signed.replace("h/", "h.example/")) is accepted


def _hosted(text: str) -> Any:
    return parse_reference(text.replace("h/", "h.example/"))


def test_identity_may_be_fixed_or_mapped() -> None:
    """A mirror's name is not what was signed: the policy says what was."""
    mirror = parse_reference("mirror.example/vendor/app:1")
    exact = Identity(match=Match.EXACT_REFERENCE, reference="vendor.example/app:1")
    assert accepts(exact, mirror, "vendor.example/app:1") and not accepts(exact, mirror, "vendor.example/app:2")
    repository = Identity(match=Match.EXACT_REPOSITORY, reference="vendor.example/app")
    assert accepts(repository, mirror, "vendor.example/app:9") and not accepts(repository, mirror, "vendor.example/b:9")
    mapped = Identity(match=Match.REMAP, prefix="mirror.example/vendor", signed_prefix="vendor.example")
    assert accepts(mapped, mirror, "vendor.example/app:1")
    assert not accepts(mapped, mirror, "mirror.example/vendor/app:1")
    other = parse_reference("mirror.example/vendors/app:1")
    assert accepts(mapped, other, "mirror.example/vendors/app:1"), "another prefix is not mapped"


def _payload(kind: str = "atomic container signature", **change: Any) -> bytes:
    image = {"docker-manifest-digest": str(DIGEST)}
    critical = {"type": kind, "image": image, "identity": {"docker-reference": "h.example/a:1"}, **change}
    return json.dumps({"critical": critical, "optional": {"creator": "x"}}).encode()


def test_payload_says_which_image_it_is_for() -> None:
    """Both formats say the same; one is not accepted for the other."""
    claim = parse_payload(_payload(), Kind.GPG)
    assert (claim.reference, claim.digest) == ("h.example/a:1", DIGEST)
    assert parse_payload(_payload("cosign container image signature"), Kind.SIGSTORE) == claim
    for body in (_payload("cosign container image signature"), _payload(more=1), _payload(identity={}), b"[]", b""):
        with pytest.raises(OperationError):
            parse_payload(body, Kind.GPG)


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.text(max_size=5), st.lists).map(json.dumps).map(str.encode)
)
def test_any_bytes_are_read_or_refused_by_name(body: bytes) -> None:
    """Signatures come from outside: they end in an OperationError or a value, never in another exception."""
    for read in (
        lambda: parse_payload(body, Kind.GPG),
        lambda: parse_attachments(body),
        lambda: parse_policy("p", body),
    ):
        with suppress(OperationError):
            read()


def test_attachments_are_the_entries_that_are_signatures() -> None:
    """cosign keeps other things under the same tag."""
    signed = {
        "mediaType": "application/vnd.dev.cosign.simplesigning.v1+json",
        "digest": str(DIGEST),
        "size": 8,
        "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(b"sig").decode()},
    }
    body = json.dumps({"layers": [{**signed, "annotations": {}}, signed, {**signed, "mediaType": "x"}]}).encode()
    [found] = parse_attachments(body)
    assert (found.digest, found.size_bytes, found.signature) == (DIGEST, 8, b"sig")
    assert attachment_tag(DIGEST) == f"sha256-{DIGEST.hex}.sig"


def test_lookasides_of_the_most_precise_section_alone_count() -> None:
    """containers-registries.d(5): a section hides the more general ones, with all their members."""
    files = [
        ("a", {"default-docker": {"lookaside": "https://all.example"}}),
        ("b", {"docker": {"h.example": {"use-sigstore-attachments": True}, "h.example/a": {"sigstore": "file:///a"}}}),
    ]
    found = parse_lookasides(files)
    assert found.section(parse_reference("h.example/a/b:1")) == Section(lookaside="file:///a")
    assert found.section(parse_reference("h.example/c:1")) == Section(attachments=True)
    assert found.section(parse_reference("i.example/c:1")) == Section(lookaside="https://all.example")
    assert parse_lookasides([]).default.lookaside == "file:///var/lib/containers/sigstore"
    place = signature_url("https://s.example/x/", "a/b", DIGEST, 2)
    assert place == f"https://s.example/x/a/b@sha256={DIGEST.hex}/signature-2"


@pytest.mark.parametrize(
    "document",
    [[], {"docker": []}, {"docker": {"h": 1}}, {"docker": {"h": {"lookaside": "ftp://h/"}}}, {"default-docker": 3}],
)
def test_lookasides_that_are_not_understood_are_refused(document: object) -> None:
    """A lookaside that is misread makes signatures be looked for in the wrong place."""
    with pytest.raises(OperationError) as caught:
        parse_lookasides([("x.yaml", document)])
    assert "x.yaml" in caught.value.message
