"""Who a container's process is: users, groups, capabilities, and the files that name them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cri import Capability, DNSConfig, LinuxContainerSecurityContext, SupplementalGroupsPolicy
from crio_core.errors import OperationError
from crio_core.oci.capabilities import ALL_CAPABILITIES, DEFAULT_CAPABILITIES, capability_sets, from_mask
from crio_core.oci.facts import ROOTFS_FILE_BYTES_MAX, RootfsFacts
from crio_core.oci.resolv import check_hostname, hostname_text, resolv_conf
from crio_core.oci.users import ID_MAX, User, resolve_user

FACTS = RootfsFacts(
    passwd=b"root:x:0:0:root:/root:/bin/sh\n"
    b"app:x:1000:1001:App:/home/app:/bin/sh\n"
    b"4294967296:x:0:0::/:\n4294967295:x:0:0::/:\n1234:x:0:0::/:\nwrapped:x:4294967296:0::/:\nnegative:x:-1:0::/:\n"
    b"badgid:x:5:4294967296::/:\nshort:x:1\n#comment:x:0:0::/:\nlate:x:1000:9::/late:\n",
    group=b"root:x:0:\napp:x:1001:\nextra:x:2002:bob,app\nfar:x:4294967297:app\nneg:x:-1:app\nmore:x:2003:app,app\n",
)
NOBODY = LinuxContainerSecurityContext()


def user(image: str = "", facts: RootfsFacts = FACTS, **members: Any) -> User:
    return resolve_user(LinuxContainerSecurityContext(**members), image, facts)


@pytest.mark.parametrize(
    "image",
    [
        "2147483648",
        "4294967295",
        "4294967296",
        "4294967297",
        "65536:4294967296",
        "1:2147483648",
        "18446744073709551616",
    ],
)
def test_id_over_the_limit_is_refused_cve_2024_40635(image: str) -> None:
    """CVE-2024-40635, CVE-2026-46680, CVE-2016-3697: never wrapped to root, never looked up as a name."""
    with pytest.raises(OperationError, match="2147483647"):
        user(image)
    with pytest.raises(OperationError):
        user("", run_as_username=image)


def test_digits_are_never_a_name_cve_2026_46680() -> None:
    """CVE-2026-46680: an entry called `1234` with uid 0 is not who uid 1234 is."""
    assert (user("1234").uid, user("1234").gid) == (1234, 0)
    assert user("", run_as_username="1234").uid == 1234
    assert user("0001000").uid == 1000


@pytest.mark.parametrize(
    "name", ["wrapped", "negative", "badgid", "missing", "ap", "app ", " app", "a" * 257, "#comment", "short", "²"]
)
def test_name_without_a_sound_entry_is_refused(name: str) -> None:
    """An entry whose ids are no ids makes nobody, least of all root."""
    with pytest.raises(OperationError):
        user(name)


def test_groups_follow_the_policy_cve_2022_2995() -> None:
    """CVE-2022-2995, CVE-2023-25173: the primary group is always there; the image adds groups for Merge only."""
    merged = user("app", supplemental_groups=(7, 2002))
    assert merged.groups == (1001, 2002, 2003, 7)
    strict = user("app", supplemental_groups=(7,), supplemental_groups_policy=SupplementalGroupsPolicy.STRICT)
    assert strict.groups == (1001, 7)
    assert user("1000").groups == merged.groups[:3]
    assert user("1000:5").groups == (5, 2002, 2003)


def test_request_wins_over_the_image() -> None:
    """run_as_user, then run_as_username, then USER; the group of USER goes with USER."""
    assert (user("app:extra").uid, user("app:extra").gid) == (1000, 2002)
    chosen = user("app:extra", run_as_user=0)
    assert (chosen.uid, chosen.gid, chosen.home) == (0, 0, "/root")
    assert user("root", run_as_username="app").uid == 1000
    assert user("root", run_as_username="app", run_as_group=50).gid == 50
    assert user("root", run_as_user=5, run_as_username="app", run_as_group=6).uid == 5
    assert user(":extra").gid == 2002 and user("app:").gid == 1001


def test_group_without_a_user_is_refused() -> None:
    """CRI run_as_group: an error without a user beside it."""
    with pytest.raises(OperationError, match="run_as_group"):
        user("app", run_as_group=5)


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=100))
def test_any_user_and_files_give_valid_ids_or_a_refusal(image: str, passwd: bytes, group: bytes) -> None:
    """Bytes of a stranger: nothing but sound ids or OperationError comes out."""
    outcome = attempt(image, RootfsFacts(passwd=passwd, group=group))
    if outcome is not None:
        assert all(0 <= number <= ID_MAX for number in (outcome.uid, outcome.gid, *outcome.groups))
        assert outcome.groups[0] == outcome.gid and len(set(outcome.groups)) == len(outcome.groups)
        assert outcome.home.startswith("/") and "\n" not in outcome.home


def attempt(image: str, facts: RootfsFacts) -> User | None:
    try:
        return resolve_user(NOBODY, image, facts)
    except OperationError:
        return None


def test_files_over_the_limit_are_refused_cve_2025_4437() -> None:
    """CVE-2025-4437: a second wall behind the bounded read."""
    with pytest.raises(OperationError, match="1048576"):
        user("app", RootfsFacts(passwd=b"\n" * (ROOTFS_FILE_BYTES_MAX + 1)))


CAPABILITY_LISTS = st.lists(st.sampled_from([*ALL_CAPABILITIES, "ALL", "kill"]), max_size=5).map(tuple)


@given(CAPABILITY_LISTS, CAPABILITY_LISTS, CAPABILITY_LISTS, st.booleans())
def test_capability_sets_keep_their_order(
    add: tuple[str, ...], drop: tuple[str, ...], ambient: tuple[str, ...], privileged: bool
) -> None:
    """Bounding holds the rest; inheritable and ambient are what was asked for as ambient, or absent."""
    asked = Capability(add_capabilities=add, drop_capabilities=drop, add_ambient_capabilities=ambient)
    sets = capability_sets(asked, privileged=privileged, defaults=DEFAULT_CAPABILITIES, available=ALL_CAPABILITIES)
    assert sets["bounding"] == sets["effective"] == sets["permitted"]
    if privileged:
        assert sets["bounding"] == list(ALL_CAPABILITIES) and set(sets) == {"bounding", "effective", "permitted"}
        return
    assert ("ambient" in sets) is ("inheritable" in sets)
    assert set(sets.get("ambient", ())) <= set(sets["bounding"])
    named = {"CAP_KILL" if name == "kill" else name for name in drop}
    assert not named & set(sets["bounding"])
    if "ALL" in drop:
        by_name = {"CAP_KILL" if name == "kill" else name for name in (*add, *ambient)}
        assert set(sets["bounding"]) <= by_name


def test_capability_that_the_node_lacks_is_refused_by_name() -> None:
    """Given to `ALL` silently, as nobody asked for that one; refused when asked for."""
    node = tuple(name for name in ALL_CAPABILITIES if name != "CAP_SYS_RESOURCE")
    sets = capability_sets(
        Capability(add_capabilities=("ALL",)), privileged=False, defaults=DEFAULT_CAPABILITIES, available=node
    )
    assert sets["bounding"] == list(node)
    with pytest.raises(OperationError, match="CAP_SYS_RESOURCE"):
        capability_sets(Capability(add_capabilities=("sys_resource",)), privileged=False, defaults=(), available=node)


@pytest.mark.parametrize("name", ["", "CAP_", "NOPE", "CAP_ALL_", "ﬀ", "CAP_KILL\n"])
def test_capability_of_another_name_is_refused(name: str) -> None:
    """A name that means nothing might be a typing error for one that matters."""
    with pytest.raises(OperationError, match="drop_capabilities"):
        capability_sets(Capability(drop_capabilities=(name,)), privileged=False, defaults=(), available=())


def test_capability_mask_is_read_in_the_kernels_order() -> None:
    """linux/capability.h: CAP_CHOWN is bit 0, CAP_SYS_ADMIN 21, CAP_CHECKPOINT_RESTORE 40."""
    assert from_mask(1 | 1 << 21 | 1 << 40) == ("CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE")
    assert from_mask((1 << 41) - 1) == ALL_CAPABILITIES


def test_resolv_conf_of_the_pod_or_of_the_node() -> None:
    """resolv.conf(5): what the pod says, or the node's own file unchanged."""
    dns = DNSConfig(
        servers=("10.96.0.10", "fe80::1%eth0"), searches=("svc.cluster.local", "local"), options=("ndots:5",)
    )
    expected = b"search svc.cluster.local local\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\noptions ndots:5\n"
    assert resolv_conf(dns, b"nameserver 1.1.1.1\n") == expected
    assert resolv_conf(DNSConfig(), b"nameserver 1.1.1.1\n") == b"nameserver 1.1.1.1\n"


@given(st.text(max_size=20))
def test_no_dns_setting_begins_another_line(text: str) -> None:
    """A newline or a blank in one setting would be another setting."""
    for dns in (DNSConfig(servers=(text,)), DNSConfig(searches=(text,)), DNSConfig(options=(text,))):
        written = resolv_or_none(dns)
        assert written is None or (written.count(b"\n") == 1 and len(written.split()) == 2)


def resolv_or_none(dns: DNSConfig) -> bytes | None:
    try:
        return resolv_conf(dns, b"")
    except OperationError:
        return None


@pytest.mark.parametrize("name", ["a b", "a\n", "-a", "a/b", "a" * 65, "é", ".", "a\0"])
def test_hostname_that_is_no_name_is_refused(name: str) -> None:
    """It goes into files and to sethostname(2)."""
    with pytest.raises(OperationError, match="hostname"):
        check_hostname(name)


def test_hostname_file_is_one_line() -> None:
    """hostname(5): the name and a newline."""
    assert hostname_text("web-0") == b"web-0\n"
