"""What is read from files, environment and flags, and what is said about what is wrong in them."""

import re
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from crio_core.errors import Code, OperationError
from crio_server.config import HANDLER_OPTIONS, OPTIONS, Config, Loaded, Option, RuntimeHandler, apply_changes, reload
from crio_server.config.elsewhere import MISSING_HANDLER_KEYS, MISSING_KEYS
from crio_server.config.kinds import (
    LIST_ITEMS_MAX,
    TEXT_CHARS_MAX,
    Choice,
    FilePath,
    Integer,
    IpAddress,
    Kind,
    ListOf,
    Refused,
    Switch,
    Text,
)
from crio_server.config.layers import (
    HANDLERS_MAX,
    WARNINGS_MAX,
    layer_from_environment,
    layer_from_flags,
    layer_from_toml,
)
from crio_server.config.load import PROBLEMS_SHOWN_MAX, merge
from crio_server.config.render import default_toml, to_toml

FILE = "/etc/crio/crio.conf"
LAST_FILE = "/etc/crio/crio.conf.d/99-last.conf"
DIRECT = {row.name: row for row in OPTIONS}
WORDS = st.text(alphabet="abcxyz019", min_size=1, max_size=8)


def values_of(kind: Kind) -> st.SearchStrategy[Any]:
    """Values that a kind takes and gives back unchanged."""
    match kind:
        case Switch():
            return st.booleans()
        case IpAddress():
            return st.one_of(st.ip_addresses().map(str), st.just(""))
        case Integer(least=least, most=most, also=also):
            return st.one_of(st.integers(least, most), *(st.just(number) for number in also))
        case Choice(words=words):
            return st.sampled_from(words)
        case FilePath(may_be_empty=may_be_empty):
            paths = st.lists(WORDS, min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))
            return st.one_of(paths, st.just("")) if may_be_empty else paths
        case ListOf(item=item):
            return st.lists(values_of(item), max_size=4, unique=True).map(tuple)
        case Text(pattern=pattern, may_be_empty=may_be_empty):
            if pattern:
                texts = st.from_regex(pattern, fullmatch=True).filter(lambda text: taken(kind, text))
            else:
                texts = st.text(min_size=1, max_size=20).filter(lambda text: taken(kind, text))
            return st.one_of(texts, st.just("")) if may_be_empty else texts
    raise AssertionError(f"no values for {kind}")


def taken(kind: Kind, raw: object) -> bool:
    try:
        kind.read(raw)
    except Refused:
        return False
    return True


@st.composite
def handlers(draw: st.DrawFn, name: str) -> RuntimeHandler:
    rows = [row for row in HANDLER_OPTIONS if row.name != "monitor_cgroup"]  # it depends on the cgroup manager
    values = {row.name: draw(values_of(row.kind)) for row in rows if draw(st.booleans())}
    return RuntimeHandler(name=name, **values)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    """Whole configurations that are consistent: the default handler exists, and slices go with systemd."""
    chosen = draw(st.lists(st.sampled_from(OPTIONS), max_size=8, unique_by=lambda row: row.name))
    values = {row.name: draw(values_of(row.kind)) for row in chosen}
    names = draw(st.lists(WORDS | st.sampled_from(["kata.fc", "a-b_c"]), max_size=3, unique=True))
    values["cgroup_manager"] = draw(st.sampled_from(["systemd", "cgroupfs"]))
    values["conmon_cgroup"] = draw(
        st.sampled_from(
            ["pod", "system.slice", "x.slice", "/x"]
            if values["cgroup_manager"] == "systemd"
            else ["", "pod", "/a.slice"]
        )
    )
    runtimes = tuple(draw(handlers(name)) for name in ["runc", *(name for name in names if name != "runc")])
    values["default_runtime"] = draw(st.sampled_from([handler.name for handler in runtimes]))
    return Config(runtimes=runtimes, **values)


def loaded(
    *documents: str,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, tuple[str, ...]] | None = None,
    has_systemd: bool = False,
) -> Loaded:
    """What counts when these files, variables and flags are given."""
    files = [layer_from_toml(FILE if n == 0 else LAST_FILE, tomllib.loads(text)) for n, text in enumerate(documents)]
    return merge([*files, layer_from_environment(environ or {}), layer_from_flags(flags or {})], has_systemd)


def refusal(*documents: str, **sources: Any) -> str:
    with pytest.raises(OperationError) as caught:
        loaded(*documents, **sources)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.reason == "INVALID_CONFIG"
    return caught.value.message


def entry(row: Option, toml_value: str) -> str:
    return f"[{row.table}]\n{row.key} = {toml_value}\n"


@given(config=configs())
def test_printed_configuration_read_again_is_the_same(config: Config) -> None:
    """`crio config > file` must be a faithful copy: people build images and tickets from it."""
    again = loaded(to_toml(config))
    assert again.config == config
    assert again.warnings == ()


def test_commented_default_uncommented_is_the_default() -> None:
    """Removing a `#` must never change anything by itself."""
    # "# Word" is a sentence; "#key" and the indented items of a list are what a `#` is removed from.
    lines = [re.sub(r"^#(?! \S)", "", line) for line in default_toml().splitlines()]
    text = "\n".join(line for line in lines if line)
    assert loaded(text).config == loaded().config
    keys = {(row.table, row.key) for row in OPTIONS}
    document = tomllib.loads(text)["crio"]
    for table, key in keys:
        entries = document if table == "crio" else document[table.removeprefix("crio.")]
        assert key in entries


@pytest.mark.parametrize("row", OPTIONS, ids=lambda row: row.name)
def test_wrong_type_of_any_option_names_file_key_value_and_expected(row: Option) -> None:
    """A table is no value of any option; the message is what an administrator sees at three in the morning."""
    message = refusal(entry(row, "{ wrong = 17 }"))
    assert message.startswith(f"{FILE}: {row.table}.{row.key}: {{'wrong': 17}} is not valid: expected ")


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("[crio.runtime]\npids_limit = '10'", "crio.runtime.pids_limit: '10' is not valid: expected a whole number"),
        ("[crio.runtime]\npids_limit = -2", "crio.runtime.pids_limit: -2 is not valid: expected a whole number"),
        ("[crio.runtime]\npids_limit = true", "pids_limit: True is not valid"),
        (
            "[crio.runtime]\nlog_size_max = 100",
            "log_size_max: 100 is not valid: expected a whole number of at least",
        ),
        ("[crio.runtime]\nselinux = 'yes'", "selinux: 'yes' is not valid: expected true or false"),
        ("[crio]\nroot = 'var/lib'", "crio.root: 'var/lib' is not valid: expected an absolute path"),
        ("[crio]\nroot = '/var/../etc'", "expected an absolute path, without .."),
        ("[crio]\nroot = ''", "crio.root: '' is not valid"),
        ("[crio.network]\nplugin_dirs = '/opt/cni/bin'", "'/opt/cni/bin' is not valid: expected a list of strings"),
        (
            "[crio.network]\nplugin_dirs = ['/a', 'b']",
            "'b' is not valid: expected each item to be an absolute path",
        ),
        (
            "[crio.runtime]\ndefault_ulimits = ['nofile=1']",
            "'nofile=1' is not valid: expected each item to be name=",
        ),
        ("[crio.runtime]\ndefault_capabilities = ['CAP_KILL']", "'CAP_KILL' is not valid"),
        ("[crio.image]\nimage_volumes = 'copy'", "'copy' is not valid: expected one of mkdir, ignore"),
        ("[crio.runtime]\nruntimes = 3", "crio.runtime.runtimes: 3 is not valid: expected a table"),
        ("crio = 3", "crio: 3 is not valid: expected a table"),
        ("[crio.runtime.runtimes.'../x']", "'../x' is not valid: expected the name of a runtime handler"),
        (
            "[crio.runtime.runtimes.kata]\nruntime_type = 'pod'",
            "runtimes.kata.runtime_type: 'pod' is not valid: expected one of oci, vm",
        ),
        (
            "[crio.runtime.runtimes.kata]\nruntime_path = '/usr/bin/containerd-shim-kata-v2'",
            "expected an OCI command-line runtime",
        ),
        ("[crio.runtime]\ndefault_runtime = 'crun'", "'crun' is not valid: expected a handler that has a table"),
        (
            "[crio.runtime]\ncgroup_manager = 'cgroupfs'\nconmon_cgroup = 'x.slice'",
            "'x.slice' is not valid: expected a path, pod or nothing",
        ),
        (
            "[crio.runtime]\ncgroup_manager = 'cgroupfs'\nconmon_cgroup = '/x/../..'",
            "'/x/../..' is not valid: expected pod, NAME.slice or an absolute path",
        ),
    ],
)
def test_bad_value_says_what_was_expected(document: str, said: str) -> None:
    """Each kind of value, wrong in the way that people get it wrong."""
    message = refusal(document)
    assert message.startswith(FILE)
    assert said in message


def test_old_runtime_key_names_a_handler_so_its_program_must_have_such_a_name() -> None:
    """What is read must be what `crio config` can write down again."""
    assert "crio.runtime.runtime: ':' is not valid" in refusal("[crio.runtime]\nruntime = ':'")
    assert "name of a runtime handler" in refusal("[crio.runtime]\nruntime = '/usr/bin/a b'")


def test_every_bad_value_is_named_at_once_and_their_number_is_bounded() -> None:
    """Nobody should have to restart a server once for each mistake."""
    message = refusal("[crio]\nroot = 1\nrunroot = 2\n[crio.runtime]\npids_limit = 'x'")
    assert [line.split(": ")[1] for line in message.splitlines()] == [
        "crio.root",
        "crio.runroot",
        "crio.runtime.pids_limit",
    ]
    many = "".join(f"[crio.runtime.runtimes.h{n}]\nruntime_path = 1\n" for n in range(PROBLEMS_SHOWN_MAX + 5))
    assert refusal(many).splitlines()[PROBLEMS_SHOWN_MAX:] == ["and 5 more"]


@pytest.mark.parametrize(("table", "key"), sorted(MISSING_KEYS))
def test_key_that_only_crio_has_is_one_warning(table: str, key: str) -> None:
    """A node's existing file must keep working, and its owner must learn what it no longer does."""
    result = loaded(f"[{table}]\n{key} = 'anything'")
    assert [str(warning) for warning in result.warnings] == [
        f"{FILE}: {table}.{key}: known to CRI-O, has no effect here"
    ]
    assert result.config == loaded().config


def test_handler_key_that_only_crio_has_is_one_warning() -> None:
    """Runtime tables are where most of the keys of today's CRI-O are."""
    for key in sorted(MISSING_HANDLER_KEYS):
        result = loaded(f"[crio.runtime.runtimes.runc]\n{key} = 'x'")
        assert [(warning.key, warning.message) for warning in result.warnings] == [
            (f"crio.runtime.runtimes.runc.{key}", "known to CRI-O, has no effect here")
        ]


@pytest.mark.parametrize(
    ("document", "key", "hint"),
    [
        ("[crio.runtime]\npid_limit = 5", "crio.runtime.pid_limit", "did you mean pids_limit?"),
        ("[crio.runtime]\nzzz = 5", "crio.runtime.zzz", "unknown key"),
        ("[crio]\npids_limit = 5", "crio.pids_limit", "unknown key"),
        ("[crio.imagess]\nx = 5", "crio.imagess", "unknown key"),
        ("[runtime]\nx = 5", "runtime", "every key is under [crio]"),
        (
            "[crio.runtime.runtimes.runc]\nruntime_paths = '/x'",
            "crio.runtime.runtimes.runc.runtime_paths",
            "runtime_path?",
        ),
    ],
)
def test_unknown_key_warns_with_file_and_key(document: str, key: str, hint: str) -> None:
    """A misspelt key that is silently ignored is a setting that somebody believes in."""
    result = loaded(document)
    assert [(warning.source, warning.key) for warning in result.warnings] == [(FILE, key)]
    assert hint in result.warnings[0].message
    assert result.config == loaded().config


def test_warnings_of_one_file_are_bounded() -> None:
    """A file of garbage keys must not fill the log."""
    text = "[crio]\n" + "".join(f"zz{n} = 1\n" for n in range(WARNINGS_MAX + 50))
    warnings = loaded(text).warnings
    assert len(warnings) == WARNINGS_MAX + 1
    assert "not shown" in warnings[-1].message


TOML_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
KNOWN_KEYS = st.sampled_from(
    [row.key for row in OPTIONS] + ["runtimes", "runtime", "api", "image", "default_workload_trust", "nri", "zz"]
)


@given(
    root=st.dictionaries(KNOWN_KEYS, TOML_VALUES, max_size=4),
    runtime=st.dictionaries(KNOWN_KEYS, TOML_VALUES, max_size=4),
    handler=st.dictionaries(st.sampled_from([row.key for row in HANDLER_OPTIONS] + ["zz"]), TOML_VALUES, max_size=3),
)
def test_any_document_is_read_or_refused(
    root: dict[str, Any], runtime: dict[str, Any], handler: dict[str, Any]
) -> None:
    """No file, however odd, may end in a traceback instead of a sentence."""
    document = {"crio": {**root, "runtime": {**runtime, "runtimes": {"runc": handler}}}}
    message = ""
    try:
        result = merge([layer_from_toml(FILE, document)], has_systemd=False)
    except OperationError as error:
        message = error.message
    else:
        assert loaded(to_toml(result.config)).config == result.config
    assert all(line.startswith((FILE, "and ")) for line in message.splitlines())


def document_of(row: Option, value: Any) -> str:
    tables = row.table.split(".")
    inner: dict[str, Any] = {row.key: row.kind.write(value)}
    for table in reversed(tables):
        inner = {table: inner}
    return tomli_w.dumps(inner)


def text_of(row: Option, value: Any) -> str:
    """A value as a flag or a variable gives it."""
    written = row.kind.write(value)
    return ",".join(written) if isinstance(written, list) else str(written)


def same_as_text(row: Option, value: Any) -> bool:
    try:
        return bool(row.kind.read_texts((text_of(row, value),)) == value)
    except Refused:
        return False


INDEPENDENT = [row for row in OPTIONS if row.name not in ("default_runtime", "conmon_cgroup", "cgroup_manager")]
"""Options of which every valid value is valid whatever the others are."""


@given(row=st.sampled_from(INDEPENDENT), data=st.data())
def test_later_source_wins(row: Option, data: st.DataObject) -> None:
    """default < crio.conf < drop-in < environment < flags, for every option and every set of sources."""
    # A comma separates items in flags and variables, so only files can carry an item with one.
    values = values_of(row.kind).filter(lambda value: same_as_text(row, value))
    by_file, by_drop_in, by_variable, by_flag = (data.draw(st.none() | values) for _ in range(4))
    documents = ["" if value is None else document_of(row, value) for value in (by_file, by_drop_in)]
    environ = {row.env: text_of(row, by_variable)} if by_variable is not None and row.env else {}
    flags = {row.name: (text_of(row, by_flag),)} if by_flag is not None and row.flags else {}
    given_values = [by_file, by_drop_in, by_variable if environ else None, by_flag if flags else None]
    expected = [value for value in given_values if value is not None]
    result = getattr(loaded(*documents, environ=environ, flags=flags).config, row.name)
    assert result == (expected[-1] if expected else getattr(loaded().config, row.name))


def test_followed_directories_move_with_runroot_and_root() -> None:
    """A second server needs only its own --root, --runroot and --listen to stay out of the first one's way."""
    config = loaded(flags={"runroot": ("/tmp/r/",), "root": ("/tmp/s",)}).config
    assert (config.namespaces_dir, config.container_exits_dir) == ("/tmp/r/ns", "/tmp/s/exits")
    assert (config.container_attach_socket_dir, config.version_file) == ("/tmp/r", "/tmp/r/version")
    assert (
        loaded("[crio.runtime]\nnamespaces_dir = '/ns'", flags={"runroot": ("/tmp/r",)}).config.namespaces_dir == "/ns"
    )


@pytest.mark.parametrize(("has_systemd", "manager"), [(True, "systemd"), (False, "cgroupfs")])
def test_cgroup_manager_not_chosen_is_decided_and_said(has_systemd: bool, manager: str) -> None:
    """The kubelet's cgroup driver must agree with it, so a silent choice costs somebody an afternoon."""
    result = loaded(has_systemd=has_systemd)
    assert (result.config.cgroup_manager, result.config.conmon_cgroup) == (manager, "")
    assert len(result.notices) == 1
    assert manager in result.notices[0]
    chosen = loaded(
        "[crio.runtime]\ncgroup_manager = 'cgroupfs'\nconmon_cgroup = 'system.slice'", has_systemd=has_systemd
    )
    assert (chosen.config.cgroup_manager, chosen.config.conmon_cgroup, chosen.notices) == ("cgroupfs", "", ())


def test_handlers_of_a_later_file_replace_those_of_the_same_name_only() -> None:
    """A drop-in adds a runtime without repeating the others, as with CRI-O."""
    first = "[crio.runtime.runtimes.runc]\nruntime_path = '/a'\nmonitor_path = '/m'\n[crio.runtime.runtimes.kata]\n"
    config = loaded(first, "[crio.runtime.runtimes.runc]\nruntime_path = '/b'\n[crio.runtime.runtimes.runsc]\n").config
    assert [handler.name for handler in config.runtimes] == ["runc", "kata", "runsc"]
    assert (config.handler("").runtime_path, config.handler("runc").monitor_path) == ("/b", "")
    assert (config.handler("kata").command, config.handler("kata").runtime_root) == ("kata", "/run/kata")


def test_unknown_handler_is_refused_by_name() -> None:
    """A pod with a RuntimeClass that this node has not learns which ones it has (CRI: runtime_handler)."""
    with pytest.raises(OperationError, match="'gvisor' is not valid: expected one of runc"):
        Config().handler("gvisor")


def test_inheriting_handler_takes_path_type_and_root_of_the_default() -> None:
    """CRI-O's inherit_default_runtime, used for handlers that differ in annotations only."""
    text = (
        "[crio.runtime.runtimes.runc]\nruntime_path = '/x/runc'\nruntime_root = '/run/x'\n"
        "[crio.runtime.runtimes.fast]\ninherit_default_runtime = true\nallowed_annotations = ['a']\n"
    )
    fast = loaded(text).config.handler("fast")
    assert (fast.runtime_path, fast.runtime_root, fast.allowed_annotations) == ("/x/runc", "/run/x", ("a",))


def test_handlers_in_flags_have_their_parts_in_order() -> None:
    """--runtimes NAME:PATH:ROOT:TYPE:PRIVILEGED, as CRI-O's; the short forms leave the rest at its default."""
    config = loaded(flags={"runtimes": ("a:/bin/a,b:/bin/b:/run/bb:vm:true", "c:/bin/c:::")}).config
    assert config.runtimes[1:] == (
        RuntimeHandler(name="a", runtime_path="/bin/a"),
        RuntimeHandler(
            name="b",
            runtime_path="/bin/b",
            runtime_root="/run/bb",
            runtime_type="vm",
            privileged_without_host_devices=True,
        ),
        RuntimeHandler(name="c", runtime_path="/bin/c"),
    )
    assert "--runtimes: 'a' is not valid: expected NAME:PATH" in refusal(flags={"runtimes": ("a",)})
    assert "runtime_type of a: 'x' is not valid" in refusal(flags={"runtimes": ("a:/b::x",)})
    assert "have no effect here" in str(loaded(flags={"runtimes": ("a:/b:::::64MiB",)}).warnings[0])


def test_bad_flag_and_variable_are_named_as_they_were_given() -> None:
    """The place to mend it is the unit file, not a configuration file."""
    assert refusal(flags={"pids_limit": ("many",)}).startswith("--pids-limit: 'many' is not valid")
    assert refusal(environ={"CONTAINER_PIDS_LIMIT": "many"}).startswith("$CONTAINER_PIDS_LIMIT: 'many' is not valid")


def test_keys_of_the_first_releases_still_say_what_they_said() -> None:
    """The seed's Clear Containers set-up: untrusted by default, with a path for each runtime."""
    text = (
        "[crio.runtime]\nruntime = '/usr/bin/runc'\nruntime_untrusted_workload = '/usr/local/bin/cc-runtime'\n"
        "default_workload_trust = 'untrusted'\n[crio.network]\nplugin_dir = '/opt/old'\n"
    )
    result = loaded(text)
    config = result.config
    assert (config.default_runtime, config.handler("").command) == ("untrusted", "/usr/local/bin/cc-runtime")
    assert config.handler("").runtime_type == "vm"
    assert config.handler("runc").command == "/usr/bin/runc"
    assert config.plugin_dirs == ("/opt/cni/bin", "/usr/lib/cni", "/opt/old")
    assert {warning.key for warning in result.warnings} == {
        "runtime",
        "runtime_untrusted_workload",
        "default_workload_trust",
        "plugin_dir",
    }


CLEAR = "runtime_untrusted_workload = '/cc'"


@pytest.mark.parametrize(
    ("file", "drop_in", "flags", "default"),
    [
        ("runtime = '/x/crun'", "", {}, "crun"),
        ("runtime = '/x/crun'\ndefault_runtime = 'runc'", "", {}, "runc"),
        ("default_runtime = 'runc'", "runtime = '/x/crun'", {}, "crun"),
        (
            "runtime_untrusted_workload = '/cc'\ndefault_workload_trust = 'untrusted'",
            "",
            {"runtime": ("/x/crun",)},
            "untrusted",
        ),
        (
            "runtime_untrusted_workload = '/cc'\ndefault_workload_trust = 'trusted'",
            "",
            {"runtime": ("/x/crun",)},
            "crun",
        ),
        (
            "runtime_untrusted_workload = '/cc'\ndefault_workload_trust = 'untrusted'",
            "",
            {"default_runtime": ("runc",)},
            "runc",
        ),
        ("", "", {"runtime": ("/usr/sbin/runc",), "debug": ("true",)}, "runc"),
    ],
)
def test_old_and_new_ways_to_name_the_default_runtime_agree(
    file: str, drop_in: str, flags: dict[str, tuple[str, ...]], default: str
) -> None:
    """The later source wins; in one source the new key does."""
    config = loaded(f"[crio.runtime]\n{file}", f"[crio.runtime]\n{drop_in}", flags=flags).config
    assert config.default_runtime == default
    if "runtime" in flags:
        assert flags["runtime"][0] in [handler.runtime_path for handler in config.runtimes]


def test_untrusted_by_default_without_a_runtime_for_it_is_refused() -> None:
    """Running untrusted pods in the trusted runtime would be the worst answer."""
    message = refusal("[crio.runtime]\ndefault_workload_trust = 'untrusted'")
    assert message.startswith(f"{FILE}: crio.runtime.default_workload_trust: 'untrusted' is not valid")


def test_debug_flag_is_log_level_debug_and_yields_to_log_level() -> None:
    """The seed's unit starts `crio --debug`."""
    assert loaded(flags={"debug": ("true",)}).config.log_level == "debug"
    assert loaded(flags={"debug": ("false",)}).config.log_level == "info"
    assert loaded(flags={"debug": ("true",), "log_level": ("warning",)}).config.log_level == "warn"


@given(old=configs(), new=configs())
def test_reload_names_every_difference_once_and_applies_the_live_ones(old: Config, new: Config) -> None:
    """F21: after SIGHUP the log and the server agree on what is in force, and nothing is half applied."""
    changes, refused = reload(old, new)
    live, kept = {change.key for change in changes}, {change.key for change in refused}
    assert live.isdisjoint(kept)
    differing = {row.name for row in OPTIONS if getattr(old, row.name) != getattr(new, row.name)}
    assert differing == {change.name for change in (*changes, *refused)} - {"runtimes"}
    after = apply_changes(old, new)
    for change in changes:
        assert getattr(after, change.name) == getattr(new, change.name)
    for change in refused:
        assert getattr(after, change.name) == getattr(old, change.name)
        assert change.name == "runtimes" or change.name == "default_runtime" or not DIRECT[change.name].live
    assert reload(after, new) == ((), refused)
    assert after.default_runtime in [handler.name for handler in after.runtimes]


def test_reload_that_changes_the_cgroup_manager_keeps_the_handlers_checked_for_the_old_one() -> None:
    """F21: a handler whose monitors go into a slice is right under systemd only, which comes with the restart."""
    old = loaded("[crio.runtime]\ncgroup_manager = 'cgroupfs'").config
    text = "[crio.runtime]\ncgroup_manager = 'systemd'\n[crio.runtime.runtimes.kata]\nmonitor_cgroup = 'k.slice'\n"
    new = loaded(text, flags={"default_runtime": ("kata",)}).config
    changes, refused = reload(old, new)
    assert changes == ()
    assert {change.name for change in refused} == {"cgroup_manager", "default_runtime", "runtimes"}
    assert apply_changes(old, new) == old
    assert str(refused[0]).startswith("crio.runtime.")


@given(config=configs())
def test_reload_of_the_same_configuration_changes_nothing(config: Config) -> None:
    """A SIGHUP out of habit is harmless."""
    assert reload(config, config) == ((), ())


def test_bounds_of_values_are_reached_and_refused() -> None:
    """Each named bound exists in fact: strings, lists, handlers."""
    assert taken(Text(), "x" * TEXT_CHARS_MAX)
    assert not taken(Text(), "x" * (TEXT_CHARS_MAX + 1))
    assert taken(ListOf(Text()), [str(n) for n in range(LIST_ITEMS_MAX)])
    assert not taken(ListOf(Text()), [str(n) for n in range(LIST_ITEMS_MAX + 1)])
    tables = "".join(f"[crio.runtime.runtimes.h{n}]\n" for n in range(HANDLERS_MAX + 1))
    assert f"expected at most {HANDLERS_MAX}" in refusal(tables)


@given(text=st.text(max_size=30))
def test_text_with_control_characters_is_refused(text: str) -> None:
    """What a file or a flag says must be writable into a file again, and never forge a log line."""
    unwritable = any((ord(char) < 32 and char != "\t") or ord(char) == 127 for char in text)
    assert taken(Text(), text) is not unwritable


def test_bytes_that_are_not_utf8_are_refused() -> None:
    """An argument may hold any bytes; Python hands them over as lone surrogates."""
    assert not taken(Text(), b"\xff".decode(errors="surrogateescape"))


def test_file_of_the_first_release_is_read_without_a_stop() -> None:
    """The keys that crio.conf of CRI-O 1.0 had, with the values it had; none may be refused."""
    text = """
[crio]
root = "/var/lib/containers/storage"
runroot = "/var/run/containers/storage"
storage_driver = ""
storage_option = []
[crio.api]
listen = "/var/run/crio/crio.sock"
stream_address = ""
stream_port = "10010"
file_locking = true
[crio.runtime]
runtime = "/usr/bin/runc"
runtime_untrusted_workload = ""
default_workload_trust = "trusted"
conmon = "/usr/local/libexec/crio/conmon"
conmon_env = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
selinux = false
seccomp_profile = "/etc/crio/seccomp.json"
apparmor_profile = "crio-default"
cgroup_manager = "cgroupfs"
hooks_dir_path = "/usr/share/containers/oci/hooks.d"
pids_limit = 1024
enable_shared_pid_namespace = false
log_size_max = -1
[crio.image]
default_transport = "docker://"
pause_image = "kubernetes/pause"
pause_command = "/pause"
signature_policy = ""
image_volumes = "mkdir"
insecure_registries = []
registries = ["docker.io"]
[crio.network]
network_dir = "/etc/cni/net.d/"
plugin_dir = "/opt/cni/bin/"
"""
    result = loaded(text)
    assert result.config.network_dir == "/etc/cni/net.d"
    assert result.config.plugin_dirs == ("/opt/cni/bin", "/usr/lib/cni")
    assert [warning.message for warning in result.warnings if "unknown" in warning.message] == [
        "unknown key, not read"  # file_locking was never a key of [crio.api]
    ]
