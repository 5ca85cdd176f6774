"""References, digests and platforms: what is read, what is refused, and that nothing is read twice differently."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import OperationError
from crio_core.image.digest import Digest, digest_of, parse_digest, verify
from crio_core.image.manifest import Descriptor
from crio_core.image.platform import Platform, choose, fitness, platform_of_machine
from crio_core.image.reference import normalise, parse_image_id, parse_reference

HEX = "0123456789abcdef"
SHA = "sha256:" + "a" * 64
words = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
domains = st.one_of(
    st.just("localhost"),
    st.just("[::1]:5000"),
    st.builds(lambda a, b: f"{a}.{b}", words, words),
    st.builds(lambda a, p: f"{a}.example:{p}", words, st.integers(1, 65535)),
)
paths = st.lists(st.one_of(words, st.builds(lambda a, b: f"{a}__{b}", words, words)), min_size=1, max_size=4).map(
    "/".join
)
tags = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=20)
hexes = st.text(HEX, min_size=64, max_size=64)


@given(domain=domains, path=paths, tag=st.one_of(st.just(""), tags), hex_digits=st.one_of(st.none(), hexes))
def test_parse_of_printed_reference_gives_it_back(domain: str, path: str, tag: str, hex_digits: str | None) -> None:
    """A reference is stored as text and read again: both must mean the same."""
    text = f"{domain}/{path}" + (f":{tag}" if tag else "") + (f"@sha256:{hex_digits}" if hex_digits else "")
    found = parse_reference(text)
    assert str(found) == text
    assert (found.domain, found.path, found.tag) == (domain, path, tag)
    assert parse_reference(str(found)) == found


@given(st.text(max_size=80))
def test_parse_of_any_text_gives_a_reference_or_a_named_refusal(text: str) -> None:
    """Whatever a pod names as its image: a reference, or an OperationError and nothing else."""
    try:
        found = parse_reference(text)
    except OperationError:
        return
    assert ".." not in found.path.split("/")
    assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("a/b", "docker.io/a/b:latest"),
        ("docker.io/redis:7", "docker.io/library/redis:7"),
        ("index.docker.io/redis", "docker.io/library/redis:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("Host/x", "Host/x:latest"),
        ("r.example:5000/a/b:t@" + SHA, "r.example:5000/a/b:t@" + SHA),
        ("r.example/a@" + SHA, "r.example/a@" + SHA),
        ("[fe80::1]:5000/a", "[fe80::1]:5000/a:latest"),
    ],
)
def test_normalise_fills_in_what_docker_does(text: str, full: str) -> None:
    """The kubelet and its users write short forms, and mean what Docker means."""
    assert str(normalise(text)) == full


@pytest.mark.parametrize(
    "text",
    [
        "", "a" * 64, "UPPER", "a//b", "/a", "a/", "a:", "a:b:c", "a@", "a@sha256:" + "A" * 64, "a@md5:" + "a" * 32,
        "a@sha256:../../etc", "../a", "a/../b", "a b", "a\n", "a:t\n", "h.example:99999/a", "h.example:/a", "-a",
        "a:" + "t" * 129, "h.example/" + "a" * 300, "a" * 600, "a\0b", "h_h.example/a",
        "\u0430/b",
    ],
)  # fmt: skip
def test_parse_of_a_bad_reference_is_refused(text: str) -> None:
    """Bounds and alphabet hold in every part; what passes goes into URLs and file names."""
    with pytest.raises(OperationError):
        parse_reference(text)


def test_cve_2024_3727_digest_of_any_other_form_is_refused() -> None:
    """CVE-2024-3727: an unchecked digest reached paths and URLs. Only exact algorithm, length and alphabet pass."""
    bad = ["", "sha256", "sha256:", "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64, "md5:" + "a" * 32,
           "sha512:" + "a" * 64, "sha256:../../../etc/passwd", "sha256:" + "a" * 63 + "\n", "sha256:" + "a" * 63 + "/",
           " sha256:" + "a" * 64, "sha256:" + "\u0661" * 64, "sha1:" + "a" * 40, None, 7,
           b"sha256:" + b"a" * 64]  # fmt: skip
    for text in bad:
        with pytest.raises(OperationError):
            parse_digest(text)
    with pytest.raises(OperationError):
        Digest(algorithm="sha256", hex="../" + "a" * 61)
    assert str(parse_digest(SHA)) == SHA
    assert parse_digest("sha512:" + "b" * 128).algorithm == "sha512"


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_verify_accepts_exactly_the_bytes_of_the_digest(data: bytes, other: bytes) -> None:
    """Everything that a registry sends is compared with the digest that named it."""
    verify(data, digest_of(data), "x")
    if other != data:
        with pytest.raises(OperationError, match="expected"):
            verify(other, digest_of(data), "x")


def test_image_id_forms_are_told_from_names() -> None:
    """An image may be named by its id, with or without the algorithm."""
    assert parse_image_id("a" * 64) == parse_image_id(SHA) == parse_digest(SHA)
    assert parse_image_id("redis") is None
    assert parse_image_id("a" * 63) is None


def _entry(architecture: str, variant: str = "", os: str = "linux") -> Descriptor:
    platform = Platform(os=os, architecture=architecture, variant=variant).normalised()
    digest = digest_of(f"{os}{architecture}{variant}".encode())
    return Descriptor(media_type="", digest=digest, size_bytes=1, platform=platform)


V2 = frozenset(["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3", "fpu", "vme"])
V3 = V2 | frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"])


@pytest.mark.parametrize(
    ("machine", "features", "variant"),
    [
        ("x86_64", frozenset(), ""),
        ("x86_64", V2 - {"popcnt"}, ""),
        ("x86_64", V2, "v2"),
        ("x86_64", V3 - {"movbe"} | {"avx512f"}, "v2"),
        ("x86_64", V3, "v3"),
        ("x86_64", V3 | frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"]), "v4"),
        ("aarch64", V3, "v8"),
    ],
)
def test_variant_of_this_machine_is_what_its_processor_can(
    machine: str, features: frozenset[str], variant: str
) -> None:
    """An image for a newer level ends with SIGILL on an older processor, and runs slower for none."""
    assert platform_of_machine(machine, features).variant == variant


def test_choose_takes_the_newest_variant_that_the_machine_runs() -> None:
    """An arm v7 machine runs v5 and v6 images too, never v8; amd64 v3 must not get a v4 image."""
    arm = [_entry("arm", "v5"), _entry("arm", "v8"), _entry("arm", "v6"), _entry("arm64"), _entry("amd64")]
    assert choose(arm, platform_of_machine("armv7l")) is arm[2]
    assert choose(arm, platform_of_machine("aarch64")) is arm[3]
    amd = [_entry("amd64"), _entry("amd64", "v4"), _entry("amd64", "v2")]
    assert choose(amd, platform_of_machine("x86_64", V3)) is amd[2]
    assert choose(amd, platform_of_machine("x86_64")) is amd[0]
    assert choose([_entry("amd64", os="windows")], platform_of_machine("x86_64")) is None
    assert choose([_entry("unknown", os="unknown")], platform_of_machine("x86_64")) is None


def test_choose_falls_back_to_the_only_entry_without_platform() -> None:
    """Old tools leave the platform out; the configuration is checked afterwards."""
    silent = Descriptor(media_type="", digest=digest_of(b""), size_bytes=1)
    assert choose([silent, _entry("s390x")], platform_of_machine("x86_64")) is silent
    assert choose([silent, silent], platform_of_machine("x86_64")) is None


@given(st.sampled_from(["v5", "v6", "v7", "v8", "", "vx", "v"]), st.sampled_from(["v5", "v6", "v7", "v8", ""]))
def test_fitness_is_best_for_the_same_variant(offered: str, wanted: str) -> None:
    """Nothing is fitter than the machine's own variant."""
    want = Platform(architecture="arm", variant=wanted)
    own = fitness(want, want)
    other = fitness(Platform(architecture="arm", variant=offered), want)
    assert own is not None
    assert other is None or other <= own
