"""Where images are looked for, and who sees which credentials."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cri import AuthConfig
from crio_core.errors import Code, OperationError
from crio_core.image.auth import (
    ANONYMOUS,
    Auth,
    Challenge,
    Credentials,
    find_credentials,
    parse_auth_file,
    parse_challenges,
    parse_token,
    plan_token,
)
from crio_core.image.helpers import Question, parse_answer, questions
from crio_core.image.reference import parse_reference
from crio_core.image.registries import RegistriesConfig, candidates, is_insecure_host, parse_registries

CONF = b"""
unqualified-search-registries = ["one.example", "docker.io"]
[aliases]
"short" = "alias.example/team/short"
[[registry]]
prefix = "r.example/team"
location = "inner.example:5000/copy"
[[registry.mirror]]
location = "m1.example/x"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "m2.example"
insecure = true
[[registry]]
location = "r.example"
insecure = true
[[registry]]
prefix = "*.blocked.example"
blocked = true
[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "w.example/all"
"""
SHA = "sha256:" + "a" * 64
USER = Credentials(username="u", password="secret")


def places(config: RegistriesConfig, text: str) -> list[str]:
    return [f"{found.host}/{found.repository}" for found in candidates(config, parse_reference(text))]


def test_candidates_follow_mirrors_then_location() -> None:
    """Mirrors in order, each only for what it may serve, then the rewritten location."""
    config = parse_registries([("main", CONF)])
    assert places(config, "r.example/team/app:1") == ["m2.example/app", "inner.example:5000/copy/app"]
    assert places(config, f"r.example/team/app@{SHA}") == [
        "m1.example/x/app", "m2.example/app", "inner.example:5000/copy/app",
    ]  # fmt: skip
    assert places(config, "r.example/teamwork/app") == ["r.example/teamwork/app"]
    assert [found.insecure for found in candidates(config, parse_reference("r.example/other"))] == [True]
    assert [found.insecure for found in candidates(config, parse_reference("r.example/team/a"))] == [True, False]
    assert places(config, "a.wild.example/b/c") == ["w.example/all/b/c", "a.wild.example/b/c"]
    assert places(config, "wild.example/b") == ["wild.example/b"]


def test_candidates_of_a_short_name_follow_alias_then_search() -> None:
    """A short name means its alias, or is searched for; without either it is refused by name."""
    config = parse_registries([("main", CONF)])
    assert places(config, "short:2") == ["alias.example/team/short"]
    assert places(config, "redis") == ["one.example/redis", "registry-1.docker.io/library/redis"]
    with pytest.raises(OperationError) as caught:
        candidates(RegistriesConfig(), parse_reference("redis"))
    assert caught.value.reason == "SHORT_NAME_UNRESOLVED"


def test_candidates_of_a_blocked_registry_are_refused() -> None:
    """Blocked means that no packet is sent there."""
    config = parse_registries([("main", CONF)])
    with pytest.raises(OperationError) as caught:
        candidates(config, parse_reference("x.blocked.example/a"))
    assert caught.value.reason == "REGISTRY_BLOCKED"


def test_drop_in_replaces_what_it_names() -> None:
    """Drop-ins apply in order: same prefix replaced, search list replaced, empty alias removed, the rest kept."""
    late = b"""
unqualified-search-registries = ["two.example"]
[aliases]
short = ""
[[registry]]
location = "r.example"
blocked = true
"""
    config = parse_registries([("main", CONF), ("late", late)])
    assert places(config, "short") == ["two.example/short"]
    with pytest.raises(OperationError):
        candidates(config, parse_reference("r.example/other"))
    assert places(config, "r.example/team/a:1")[-1] == "inner.example:5000/copy/a"


@pytest.mark.parametrize(
    "text",
    ["[registries.search]\n", "x = [", "[[registry]]\n", '[[registry]]\nlocation = "http://a.example"\n',
     '[[registry]]\nlocation = "a.example"\nblocked = "yes"\n', 'unqualified-search-registries = ["a/b"]\n',
     '[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "never"\n'],
)  # fmt: skip
def test_registries_file_with_an_error_is_refused_with_its_name(text: str) -> None:
    """A file that is half understood must not be half applied."""
    with pytest.raises(OperationError, match=r"file\.conf|unqualified"):
        parse_registries([("file.conf", text.encode())])


def test_insecure_hosts_are_loopback_and_what_is_listed() -> None:
    """Plain HTTP is for loopback, listed hosts and listed address ranges; a name is never resolved to decide."""
    assert is_insecure_host("127.0.0.1:5000", ())
    assert is_insecure_host("[::1]:5000", ())
    assert is_insecure_host("localhost", ())
    assert is_insecure_host("10.1.2.3:80", ("10.0.0.0/8",))
    assert is_insecure_host("r.example:5000", ("r.example:5000",))
    assert is_insecure_host("r.example:5000", ("r.example",))
    assert not is_insecure_host("r.example", ("other.example", "10.0.0.0/8"))
    assert not is_insecure_host("127.0.0.1.evil.example", ())
    assert not is_insecure_host("11.1.2.3", ("10.0.0.0/8",))


def auth_file(entries: dict[str, str]) -> bytes:
    auths = {key: {"auth": base64.b64encode(f"{user}:p".encode()).decode()} for key, user in entries.items()}
    return json.dumps({"auths": auths}).encode()


def test_auth_file_gives_the_entry_of_the_longest_namespace() -> None:
    """containers-auth.json(5): the most specific key wins, and Docker's old key is docker.io's."""
    auths = parse_auth_file(
        auth_file(
            {"r.example": "host", "r.example/a": "a", "r.example/a/b": "ab", "https://index.docker.io/v1/": "hub"}
        )
    ).auths
    assert find_credentials(auths, "r.example", "a/b/c").username == "ab"
    assert find_credentials(auths, "r.example", "a/x").username == "a"
    assert find_credentials(auths, "r.example", "ab").username == "host"
    assert find_credentials(auths, "r.example:5000", "a") is ANONYMOUS
    assert find_credentials(auths, "registry-1.docker.io", "library/redis").username == "hub"


def test_empty_entry_of_an_auth_file_hides_nothing() -> None:
    """Docker writes `{}` for what its store keeps; a namespace without anything is not a login as nobody."""
    document = json.loads(auth_file({"r.example": "host"}))
    document["auths"]["r.example/team"] = {}
    auths = parse_auth_file(json.dumps(document).encode()).auths
    assert find_credentials(auths, "r.example", "team/app").username == "host"


@pytest.mark.parametrize("entry", [{"auth": "bm9jb2xvbg=="}, {"auth": "%"}, {"auth": 7}, "text"])
def test_an_entry_that_cannot_be_read_is_the_trouble_of_its_own_registry(entry: object) -> None:
    """One that somebody mistyped years ago is no reason to pull nothing from all others."""
    document = json.loads(auth_file({"r.example": "host"}))
    document["auths"]["https://old.example/team"] = entry
    file = parse_auth_file(json.dumps(document).encode())
    assert file.auths.keys() == {"r.example"}
    assert [(host, fault.code) for host, fault in file.faults.items()] == [("old.example", Code.INVALID_ARGUMENT)]


def test_an_entry_with_a_newline_and_members_that_are_null_are_read() -> None:
    """What base64(1) and generators of such files write."""
    encoded = base64.encodebytes(b"user:p").decode()
    document = {"auths": {"r.example": {"auth": encoded}}, "credHelpers": None, "credsStore": None}
    assert parse_auth_file(json.dumps(document).encode()).auths["r.example"].password == "p"
    assert not parse_auth_file(b'{"auths": null}').auths


def test_credential_helper_of_a_host_comes_first_and_the_store_last() -> None:
    """containers-auth.json(5), Docker's config.json and registries.conf: who is asked, by which name, in what order."""
    document = json.loads(auth_file({"known.example": "host"}))
    document["credHelpers"] = {"https://helped.example": "cloud", "known.example": "cloud"}
    document["credsStore"] = "desktop"
    file = parse_auth_file(json.dumps(document).encode())
    asked = {
        host: [(one.program, one.server) for one in questions(file, ("containers-auth.json", "vault"), host, "a")]
        for host in ("helped.example", "known.example", "registry-1.docker.io", "other.example:5000")
    }
    cloud, desktop, vault = (f"docker-credential-{one}" for one in ("cloud", "desktop", "vault"))
    assert asked["helped.example"] == [(cloud, "helped.example")]
    assert asked["known.example"] == [(cloud, "known.example")]
    assert asked["registry-1.docker.io"] == [(desktop, "https://index.docker.io/v1/"), (vault, "docker.io")]
    assert asked["other.example:5000"] == [(desktop, "other.example:5000"), (vault, "other.example:5000")]
    known = parse_auth_file(auth_file({"known.example": "host"}))
    assert questions(known, ("vault",), "known.example", "a") == ()


@pytest.mark.parametrize("name", ["../../bin/sh", "a b", "", "-x", "a" * 65])
def test_credential_helper_with_another_name_is_no_program(name: str) -> None:
    """The word comes from a file and becomes a program's name."""
    file = parse_auth_file(json.dumps({"credHelpers": {"r.example": name or "/"}}).encode())
    with pytest.raises(OperationError):
        questions(file, (), "r.example", "a")


@pytest.mark.parametrize(
    ("code", "answer", "found"),
    [
        (0, b'{"Username": "u", "Secret": "secret"}', Credentials(username="u", password="secret")),
        (0, b'{"Username": "<token>", "Secret": "secret"}', Credentials(identity_token="secret")),
        (1, b"credentials not found in native keychain", ANONYMOUS),
        (1, b"secret went wrong", None),
        (0, b'{"Username": "u"}', None),
        (0, b'{"Username": "u", "Secret": 7}', None),
        (0, b"[" * 100_000, None),
        (0, b"secret", None),
    ],
)
def test_answer_of_a_credential_helper(code: int, answer: bytes, found: Credentials | None) -> None:
    """What is no answer is an error that repeats nothing of it: it may hold the secret."""
    question = Question(program="docker-credential-x", server="r.example")
    if found is not None:
        assert parse_answer(question, code, answer) == found
        return
    with pytest.raises(OperationError) as caught:
        parse_answer(question, code, answer)
    assert caught.value.reason == "CREDENTIAL_HELPER_FAILED" and "secret" not in caught.value.message.replace(
        "a user name and a secret", ""
    )


def test_auth_of_a_request_goes_to_its_registry_only() -> None:
    """A mirror, or a rewritten location, is another host: the request's password is not for it."""
    config = parse_registries([("main", CONF)])
    auth = Auth(cri=AuthConfig(username="u", password="secret"))
    shown = {
        found.host: auth.for_candidate(found).username
        for text in ("r.example/team/a:1", "r.example/x")
        for found in candidates(config, parse_reference(text))
    }
    assert shown == {"m2.example": "", "inner.example:5000": "", "r.example": "u"}
    elsewhere = Auth(cri=AuthConfig(username="u", password="p", server_address="https://other.example"))
    assert all(
        elsewhere.for_candidate(found) is ANONYMOUS for found in candidates(config, parse_reference("r.example/x"))
    )


def test_auth_of_a_request_in_base64_is_read() -> None:
    """The CRI has user and password, or both in one word."""
    encoded = base64.b64encode(b"u:p:q").decode()
    [candidate] = candidates(RegistriesConfig(), parse_reference("r.example/x"))
    found = Auth(cri=AuthConfig(auth=encoded)).for_candidate(candidate)
    assert (found.username, found.password) == ("u", "p:q")
    with pytest.raises(OperationError) as caught:
        Auth(cri=AuthConfig(auth="secret!")).for_candidate(candidate)
    assert "secret" not in caught.value.message


def test_credentials_are_never_printed() -> None:
    """Logs and tracebacks print objects."""
    auth = Auth(cri=AuthConfig(password="secret"), auths={"h": USER})
    challenge = Challenge(scheme="bearer", parameters={"realm": "https://a.r.example/t"})
    plan = plan_token(challenge, "b.r.example", "x", Credentials(username="u", password="secret"), insecure=False)
    assert plan.authorization
    for thing in (auth, USER, plan):
        assert "secret" not in repr(thing)
        assert base64.b64encode(b"u:secret").decode() not in repr(thing)


def test_cve_2019_10214_token_server_without_tls_is_refused() -> None:
    """CVE-2019-10214: a realm over plain HTTP gets nothing, unless the registry itself is marked insecure."""
    challenge = Challenge(scheme="bearer", parameters={"realm": "http://r.example/token"})
    with pytest.raises(OperationError) as caught:
        plan_token(challenge, "r.example", "x", USER, insecure=False)
    assert caught.value.reason == "TOKEN_REALM_REFUSED"
    assert plan_token(challenge, "r.example:5000", "x", USER, insecure=True).authorization
    with pytest.raises(OperationError):
        plan_token(challenge, "registry.r.example", "x", USER, insecure=True)
    for realm in ("", "file:///etc/passwd", "https://", "https://u:p@r.example/t", "ftp://r.example"):
        with pytest.raises(OperationError):
            plan_token(Challenge(scheme="bearer", parameters={"realm": realm}), "r.example", "x", USER, insecure=True)


@pytest.mark.parametrize(
    ("host", "realm", "shown"),
    [
        ("registry-1.docker.io", "https://auth.docker.io/token", True),
        ("r.example:5000", "https://r.example/token", True),
        ("r.example", "https://evil.test/token", False),
        ("r.example", "https://evil.example/token", False),
        ("127.0.0.1:5000", "https://127.0.0.2/token", False),
        ("r.corp.example", "https://auth.corp.example/token", True),
        ("registry.gitlab.com", "https://gitlab.com/jwt/auth", True),
        ("registry.corp.example", "https://auth.registry.corp.example/token", True),
        ("registry.corp.example", "https://corp.example.evil.test/token", False),
        ("registry.corp.example", "https://evilcorp.example/token", False),
        ("victim.azurecr.io", "https://attacker.azurecr.io/token", False),
        ("victim.azurecr.io", "https://azurecr.io/token", False),
        ("shop.co.uk", "https://thief.co.uk/token", False),
        ("registry.shop.co.uk", "https://auth.shop.co.uk/token", True),
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "https://2.dkr.ecr.eu-west-1.amazonaws.com/token", False),
        ("registry.example", "https://example/token", False),
        ("localhost:5000", "https://a.localhost/token", False),
        ("[::1]:5000", "https://[::2]/token", False),
    ],
)
def test_cve_2020_15157_token_server_elsewhere_sees_no_credentials(host: str, realm: str, shown: bool) -> None:
    """CVE-2020-15157: the realm is what a registry says; only the registry's own kin is shown a password."""
    challenge = Challenge(scheme="bearer", parameters={"realm": realm, "service": "s"})
    plan = plan_token(challenge, host, "a/b", USER, insecure=False)
    assert bool(plan.authorization) is shown
    assert "scope=repository%3Aa%2Fb%3Apull" in plan.url
    assert "service=s" in plan.url
    token = Credentials(identity_token="secret")
    assert bool(plan_token(challenge, host, "a/b", token, insecure=False).form) is shown


def test_challenges_are_read_as_rfc_9110_has_them() -> None:
    """Several challenges may share a header, and values may be quoted with commas inside."""
    found = parse_challenges('Basic realm="a, b", Bearer realm="https://x/t",service="s\\"q", scope=x')
    assert [(one.scheme, dict(one.parameters)) for one in found] == [
        ("basic", {"realm": "a, b"}),
        ("bearer", {"realm": "https://x/t", "service": 's"q', "scope": "x"}),
    ]


@given(st.text(max_size=200))
def test_challenges_of_any_text_are_read_without_end(text: str) -> None:
    """A hostile header neither breaks nor hangs the reader."""
    assert len(parse_challenges(text)) <= 9


@given(st.binary(max_size=100))
def test_token_of_any_body_is_a_token_or_a_refusal(data: bytes) -> None:
    """A token goes into a header: nothing that could end the header line passes."""
    try:
        token, life_s = parse_token(data)
    except OperationError:
        return
    assert token.isprintable()
    assert life_s > 0


@pytest.mark.parametrize("token", ["a b", "a\r\nx: y", "", None, 7, "a" * 70_000])
def test_token_that_would_break_a_header_is_refused(token: object) -> None:
    """Header injection by a token server."""
    with pytest.raises(OperationError):
        parse_token(json.dumps({"token": token}).encode())


def test_a_realm_and_a_token_that_nothing_can_be_done_with_are_refused_by_their_names() -> None:
    """The token goes into a header, and the realm is read as an address."""
    challenge = Challenge(scheme="bearer", parameters={"realm": "https://["})
    with pytest.raises(OperationError) as refused:
        plan_token(challenge, "r.example", "a", ANONYMOUS, insecure=False)
    assert refused.value.reason == "TOKEN_REALM_REFUSED"
    with pytest.raises(OperationError) as refused:
        parse_token('{"token": "tokén"}'.encode())
    assert refused.value.reason == "TOKEN_INVALID"
