"""Signatures that others made, and the verdicts of others: skopeo decides about the same policies as we do."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from crio_core import effects as fx
from crio_core.errors import OperationError
from crio_core.layout import Layout
from crio_io.images import ImageStore
from crio_io.registry.configuration import RegistryOptions
from crio_io.registry.signatures import dearmored, opened
from crio_io.vault import Vault
from tests.integration.registry_fixture import LocalRegistry, archive, digest, pack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.anyio,
    pytest.mark.skipif(
        not all(map(shutil.which, ("skopeo", "gpg", "gpgv", "openssl"))), reason="needs skopeo, gpg, gpgv and openssl"
    ),
]
ACCEPT = {"type": "insecureAcceptAnything"}
SIMPLE = "application/vnd.dev.cosign.simplesigning.v1+json"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A registry with images that are signed, files that say where the signatures are, and public keys."""

    registry: LocalRegistry
    directory: Path
    gpg_home: Path

    @property
    def host(self) -> str:
        return self.registry.host

    def key(self, name: str) -> str:
        return str(self.directory / f"{name}.pub")


def _run(*argv: str, env: dict[str, str] | None = None, stdin: bytes = b"") -> bytes:
    done = subprocess.run(argv, input=stdin, capture_output=True, env=env, timeout=60, check=False)
    assert done.returncode == 0, (argv, done.stderr.decode())
    return done.stdout


def _gpg_environ(home: Path) -> dict[str, str]:
    return {**os.environ, "GNUPGHOME": str(home)}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Signed]:
    """signed:1 by GPG, other:1 by GPG as signed:1, sigstore:1 by an openssl key, plain:1 by nobody."""
    directory = tmp_path_factory.mktemp("criotest-signed")
    home = directory / "gpg"
    home.mkdir(mode=0o700)
    with LocalRegistry(directory / "registry") as registry:
        found = Signed(registry=registry, directory=directory, gpg_home=home)
        try:
            _fill(found)
            yield found
        finally:
            subprocess.run(["gpgconf", "--kill", "all"], env=_gpg_environ(home), timeout=30, check=False)


def _fill(signed: Signed) -> None:
    environ = _gpg_environ(signed.gpg_home)
    for name in ("good", "bad"):
        batch = ("gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", "")
        _run(*batch, "--quick-gen-key", f"{name}@example.com", "rsa2048", "sign", "never", env=environ)
        Path(signed.key(name)).write_bytes(_run("gpg", "--armor", "--export", f"{name}@example.com", env=environ))
        _run("openssl", "ecparam", "-genkey", "-name", "prime256v1", "-noout", "-out", signed.key(name) + ".ec")
        public = _run("openssl", "ec", "-in", signed.key(name) + ".ec", "-pubout")
        Path(signed.key(f"{name}-ec")).write_bytes(public)
    registries = signed.directory / "registries.d"
    registries.mkdir()
    lookaside = f"file://{signed.directory}/lookaside"
    (registries / "x.yaml").write_text(
        f"docker:\n  {signed.host}:\n    lookaside: {lookaside}\n    use-sigstore-attachments: true\n"
        f"    lookaside-staging: {lookaside}\n    sigstore: {lookaside}\n    sigstore-staging: {lookaside}\n"
    )
    for name in ("signed", "other", "sigstore", "plain"):
        pushed = signed.registry.push(name, [pack(archive({name: b"content"}))], tag="1")
        identity = f"{signed.host}/signed:1"
        if name in ("signed", "other"):
            place = f"docker://{signed.host}/{name}:1"
            policy = signed.directory / "accept.json"
            policy.write_text(json.dumps({"default": [ACCEPT]}))
            tls = ("--src-tls-verify=false", "--dest-tls-verify=false", "--sign-by", "good@example.com")
            where = ("--registries.d", str(registries), "--policy", str(policy))
            _run("skopeo", *where, "copy", *tls, "--sign-identity", identity, place, place, env=environ)
        elif name == "sigstore":
            _sign_as_cosign(signed, name, pushed.manifest_digest)


def _sign_as_cosign(signed: Signed, name: str, manifest_digest: str) -> None:
    critical = {
        "identity": {"docker-reference": f"{signed.host}/{name}"},
        "image": {"docker-manifest-digest": manifest_digest},
        "type": "cosign container image signature",
    }
    payload = json.dumps({"critical": critical, "optional": None}).encode()
    signature = _run("openssl", "dgst", "-sha256", "-sign", signed.key("good") + ".ec", stdin=payload)
    config = b"{}"
    for blob in (payload, config):
        signed.registry.push_blob(name, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest(config),
            "size": len(config),
        },
        "layers": [
            {
                "mediaType": SIMPLE,
                "digest": digest(payload),
                "size": len(payload),
                "annotations": {"dev.cosignproject.cosign/signature": base64.b64encode(signature).decode()},
            }
        ],
    }
    tag = manifest_digest.replace(":", "-") + ".sig"
    signed.registry.push_manifest(name, json.dumps(manifest).encode(), manifest["mediaType"], tag)  # type: ignore[arg-type]


async def verdict(signed: Signed, tmp_path: Path, image: str, policy: Path, namespace: str = "") -> str:
    """What we say of an image: nothing, or why not."""
    conf = tmp_path / "registries.conf"
    conf.write_text("")
    options = RegistryOptions(
        conf=conf,
        conf_dir=tmp_path / "none",
        policy=str(policy),
        policy_dir=str(tmp_path / "policies"),
        lookaside_dir=signed.directory / "registries.d",
    )
    layout = Layout(root=PurePosixPath(tmp_path / "root"), runroot=PurePosixPath(tmp_path / "run"))
    (tmp_path / "root").mkdir(exist_ok=True)
    async with ImageStore.opened(layout, options, Vault()) as images:
        try:
            await images.resolve(fx.ResolveImage(reference=f"{signed.host}/{image}", auth="", namespace=namespace))
        except OperationError as error:
            return f"{error.reason}: {error.message}"
    return ""


def skopeo_accepts(signed: Signed, tmp_path: Path, image: str, policy: Path) -> bool:
    """What skopeo says of the same image under the same policy."""
    target = tmp_path / "copied"
    shutil.rmtree(target, ignore_errors=True)
    where = ("--registries.d", str(signed.directory / "registries.d"), "--policy", str(policy))
    argv = ["skopeo", *where, "copy", "--src-tls-verify=false", "--remove-signatures"]
    argv += [f"docker://{signed.host}/{image}", f"dir:{target}"]
    return subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode == 0


def _requirements(signed: Signed) -> dict[str, list[dict[str, Any]]]:
    gpg: dict[str, Any] = {"type": "signedBy", "keyType": "GPGKeys"}
    repository = {"signedIdentity": {"type": "matchRepository"}}
    data = base64.b64encode(Path(signed.key("good")).read_bytes()).decode()
    exact = {"signedIdentity": {"type": "exactReference", "dockerReference": f"{signed.host}/signed:1"}}
    remap = {"type": "remapIdentity", "prefix": f"{signed.host}/other", "signedPrefix": f"{signed.host}/signed"}
    return {
        "accept": [ACCEPT],
        "reject": [{"type": "reject"}],
        "accept and reject": [ACCEPT, {"type": "reject"}],
        "gpg": [{**gpg, "keyPath": signed.key("good")}],
        "gpg, key in the policy": [{**gpg, "keyData": data}],
        "gpg, other key": [{**gpg, "keyPath": signed.key("bad")}],
        "gpg, by repository": [{**gpg, "keyPath": signed.key("good"), **repository}],
        "gpg, as another image": [{**gpg, "keyPath": signed.key("good"), **exact}],
        "gpg, mapped": [{**gpg, "keyPath": signed.key("good"), "signedIdentity": remap}],
    }


async def test_our_verdict_is_skopeos_for_every_policy_and_image(signed: Signed, tmp_path: Path) -> None:
    """Whoever moves a policy here from CRI-O or podman must get the same images through it, and no other."""
    policy = tmp_path / "policy.json"
    verdicts = {}
    for name, requirements in _requirements(signed).items():
        transports = {"docker": {signed.host: requirements}}
        policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": transports}))
        for image in ("signed:1", "other:1", "sigstore:1", "plain:1"):
            ours = await verdict(signed, tmp_path, image, policy)
            assert (ours == "") is skopeo_accepts(signed, tmp_path, image, policy), (name, image, ours)
            assert not ours or ours.startswith("SIGNATURE_REJECTED: SignatureValidationFailed: "), ours
            verdicts[name, image] = ours == ""
    assert verdicts["gpg", "signed:1"]
    assert not verdicts["gpg", "other:1"] and verdicts["gpg, mapped", "other:1"]
    assert not any(verdicts[name, "plain:1"] for name, _ in verdicts if name != "accept")


@pytest.mark.parametrize(
    ("image", "key", "identity", "accepted"),
    [
        ("sigstore:1", "good-ec", "matchRepository", True),
        ("sigstore:1", "good-ec", "matchRepoDigestOrExact", False),
        ("sigstore:1", "bad-ec", "matchRepository", False),
        ("signed:1", "good-ec", "matchRepository", False),
        ("plain:1", "good-ec", "matchRepository", False),
    ],
)
@pytest.mark.parametrize("inside", [False, True], ids=["key file", "key in the policy"])
async def test_sigstore_signature_counts_by_key_and_identity(
    signed: Signed, tmp_path: Path, image: str, key: str, identity: str, accepted: bool, inside: bool
) -> None:
    """As cosign signs: for a repository without a tag. Debian switched sigstore off in skopeo, so it is not asked."""
    data = base64.b64encode(Path(signed.key(key)).read_bytes()).decode()
    where = {"keyData": data} if inside else {"keyPath": signed.key(key)}
    requirement = {"type": "sigstoreSigned", **where, "signedIdentity": {"type": identity}}
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [requirement]}))
    found = await verdict(signed, tmp_path, image, policy)
    assert (found == "") is accepted, found


async def test_every_requirement_must_be_met(signed: Signed, tmp_path: Path) -> None:
    """A list is a conjunction: one good signature does not stand for another kind."""
    gpg = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": signed.key("good")}
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [gpg, {"type": "sigstoreSigned", "keyPath": signed.key("good-ec")}]}))
    assert "sigstoreSigned" in await verdict(signed, tmp_path, "signed:1", policy)
    assert "signedBy" in await verdict(signed, tmp_path, "sigstore:1", policy)


async def test_policy_of_a_namespace_stands_in_place_of_the_nodes(signed: Signed, tmp_path: Path) -> None:
    """As CRI-O has it: signature_policy_dir/NAMESPACE.json decides for pods of that namespace alone."""
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"default": [ACCEPT]}))
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "strict.json").write_text(json.dumps({"default": [{"type": "reject"}]}))
    assert await verdict(signed, tmp_path, "plain:1", policy) == ""
    assert await verdict(signed, tmp_path, "plain:1", policy, "lax") == ""
    assert "SIGNATURE_REJECTED" in await verdict(signed, tmp_path, "plain:1", policy, "strict")
    assert "INVALID_FIELD" in await verdict(signed, tmp_path, "plain:1", policy, "../policies/strict")


async def test_policy_that_is_configured_and_missing_or_wrong_stops_pulls(signed: Signed, tmp_path: Path) -> None:
    """A policy that cannot be read must not be taken for one that allows everything."""
    assert "FILE_UNREADABLE" in await verdict(signed, tmp_path, "plain:1", tmp_path / "absent.json")
    (tmp_path / "wrong.json").write_text("{}")
    assert "POLICY_INVALID" in await verdict(signed, tmp_path, "plain:1", tmp_path / "wrong.json")
    key = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": str(tmp_path / "no-key")}
    (tmp_path / "key.json").write_text(json.dumps({"default": [key]}))
    assert "KEY_UNREADABLE" in await verdict(signed, tmp_path, "signed:1", tmp_path / "key.json")


async def test_gpg_signature_of_an_expired_or_unknown_key_or_changed_is_none(signed: Signed, tmp_path: Path) -> None:
    """gpgv says of an expired key what it says of a good one, in other words; only one word counts."""
    environ = _gpg_environ(signed.gpg_home)
    batch = ("gpg", "--batch", "--pinentry-mode", "loopback", "--passphrase", "")
    old = ("--faked-system-time", "20200101T000000")
    _run(*batch, *old, "--quick-gen-key", "old@example.com", "rsa2048", "sign", "1d", env=environ)
    expired = _run(*batch, *old, "--sign", "--local-user", "old@example.com", stdin=b"payload", env=environ)
    good = _run(*batch, "--sign", "--local-user", "good@example.com", stdin=b"payload", env=environ)
    keys = dearmored(_run("gpg", "--armor", "--export", env=environ))
    assert await opened(good, keys) == b"payload"
    stored = _run(*batch, "--store", stdin=b"payload", env=environ)
    for bad in (expired, stored, b"", good[:-20], good[:60] + bytes([good[60] ^ 1]) + good[61:]):
        with pytest.raises(OperationError) as caught:
            await opened(bad, keys)
        assert caught.value.reason == "SIGNATURE_INVALID"
    with pytest.raises(OperationError):
        await opened(good, dearmored(Path(signed.key("bad")).read_bytes()))
