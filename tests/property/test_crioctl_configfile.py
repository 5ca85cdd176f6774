"""Pod and container files: every spelling reads the same, nothing is dropped in silence, old files still work."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl import configfile
from crio_server.crioctl.errors import EXIT_USAGE, BadInput

EXAMPLES = Path(__file__).parents[2] / "examples" / "pods"
SEED_PATH = Path(__file__).parents[2] / "test" / "testdata"

text = st.text(st.characters(codec="utf-8"), max_size=12)
filled = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
labels = st.dictionaries(filled, text, max_size=3)
mode = st.sampled_from(pb.NamespaceMode.keys())


@st.composite
def pods(draw: st.DrawFn) -> pb.PodSandboxConfig:
    pod = pb.PodSandboxConfig(
        hostname=draw(text), log_directory=draw(text), labels=draw(labels), annotations=draw(labels)
    )
    pod.metadata.CopyFrom(
        pb.PodSandboxMetadata(
            name=draw(filled), namespace=draw(filled), uid=draw(filled), attempt=draw(st.integers(0, 2**32 - 1))
        )
    )
    for _ in range(draw(st.integers(0, 2))):
        pod.port_mappings.add(
            protocol=draw(st.sampled_from(pb.Protocol.values())),
            container_port=draw(st.integers(0, 65535)),
            host_ip=draw(text),
        )
    pod.dns_config.servers.extend(draw(st.lists(text, max_size=3)))
    pod.linux.cgroup_parent = draw(text)
    pod.linux.sysctls.update(draw(labels))
    context = pod.linux.security_context
    context.namespace_options.CopyFrom(pb.NamespaceOption(network=draw(mode), pid=draw(mode), ipc=draw(mode)))
    context.privileged = draw(st.booleans())
    context.supplemental_groups.extend(draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2)))
    context.run_as_user.value = draw(st.integers(-(2**63), 2**63 - 1))
    return pod


def write(directory: Path, values: Any, name: str = "pod.json") -> Path:
    path = directory / name
    path.write_text(json.dumps(values) if name.endswith("json") else yaml.safe_dump(values))
    return path


def unwarned(sentence: str) -> None:
    raise AssertionError(f"unexpected warning: {sentence}")


def as_values(message: Message, *, snake: bool, numbers: bool) -> dict[str, Any]:
    values: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=snake, use_integers_for_enums=numbers)
    return values


same_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@same_directory
@given(pod=pods(), snake=st.booleans(), numbers=st.booleans(), name=st.sampled_from(("pod.json", "pod.yaml", "pod")))
def test_file_in_any_spelling_reads_the_same(
    tmp_path: Path, pod: pb.PodSandboxConfig, snake: bool, numbers: bool, name: str
) -> None:
    """snake_case or camelCase, enum names or numbers, JSON or YAML: users have all of them, and they mean one thing."""
    path = write(tmp_path, as_values(pod, snake=snake, numbers=numbers), name)
    assert configfile.load_pod(path, unwarned) == pod


def paths_of(values: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places in nested values where an object with fixed keys stands."""
    if isinstance(values, list):
        return [path for index, item in enumerate(values) for path in paths_of(item, (*prefix, index))]
    if not isinstance(values, dict) or (prefix and prefix[-1] in ("labels", "annotations", "sysctls")):
        return []
    return [prefix, *(path for key, item in values.items() for path in paths_of(item, (*prefix, key)))]


@same_directory
@given(pod=pods(), data=st.data())
def test_unknown_key_anywhere_is_refused_with_its_path(
    tmp_path: Path, pod: pb.PodSandboxConfig, data: st.DataObject
) -> None:
    """A misspelt key that is dropped means a pod without the limit that its author wrote."""
    values = as_values(pod, snake=True, numbers=False)
    where = data.draw(st.sampled_from(paths_of(values)))
    target: Any = values
    for step in where:
        target = target[step]
    target["no_such_key"] = 1
    path = write(tmp_path, values)
    with pytest.raises(BadInput) as caught:
        configfile.load_pod(path, unwarned)
    dotted = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in (*where, "no_such_key")).lstrip(
        "."
    )
    assert caught.value.message.startswith(f"{path}: {dotted}: unknown key")
    assert caught.value.exit_code == EXIT_USAGE


def container(**more: Any) -> dict[str, Any]:
    return {"metadata": {"name": "c"}, "image": {"image": "i"}, **more}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (container(log_pth="x"), "log_pth: unknown key; did you mean log_path?"),
        (container(linux={"resources": {"memoryLimit": 1}}), "linux.resources.memoryLimit: unknown key"),
        (container(log_path="a", logPath="b"), "logPath: given twice, also as log_path"),
        (container(tty="yes"), "tty: expected true or false, found a string"),
        (container(args="ls"), "args: expected a list, found a string"),
        (container(args=["ls", 1]), "args[1]: expected a string (in YAML, quote it), found 1"),
        (container(labels={"a": 1}), "labels.a: expected a string"),
        (container(labels=["a"]), "labels: expected an object of strings, found a list"),
        (container(linux={"resources": {"cpu_shares": 2**63}}), "linux.resources.cpu_shares: 9223372036854775808 is"),
        (container(linux={"resources": {"cpu_shares": 1.5}}), "linux.resources.cpu_shares: expected an integer"),
        (container(linux={"resources": {"cpu_shares": True}}), "linux.resources.cpu_shares: expected an integer"),
        (container(linux={"resources": {"cpu_shares": "many"}}), "linux.resources.cpu_shares: expected an integer"),
        (container(mounts=[{"propagation": "SIDEWAYS"}]), "mounts[0].propagation: 'SIDEWAYS' is not one of: 0 PROP"),
        (container(mounts=[{"propagation": 9}]), "mounts[0].propagation: 9 is not one of"),
        (container(mounts=[[]]), "mounts[0]: expected an object, found a list"),
        (container(linux=[]), "linux: expected an object, found a list"),
        ({"image": {"image": "i"}}, "metadata.name: missing or empty"),
        ({"metadata": {"name": "c"}}, "image.image: missing or empty"),
        ([], "expected an object with keys such as metadata, found a list"),
    ],
)  # fmt: skip
def test_wrong_value_is_refused_in_words(tmp_path: Path, values: Any, sentence: str) -> None:
    """The message names file, key, and what was expected, so that nobody has to guess."""
    path = write(tmp_path, values, "c.json")
    with pytest.raises(BadInput) as caught:
        configfile.load_container(path, unwarned)
    assert caught.value.message.startswith(f"{path}: {sentence}"), caught.value.message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "expected an object"),
        (b"{", "not valid JSON"),
        (b"a: [", "not valid YAML"),
        (b"a: \x01", "not valid YAML"),
        (b"a: \xff\xff", "not valid YAML"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"metadata": {"attempt": ' + b"9" * 5000 + b"}}", "not valid JSON"),
        (b"&a [*a]", "expected an object"),
    ],
)
def test_file_that_is_neither_json_nor_yaml_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    """Whatever bytes the file holds, the answer is a sentence, not a traceback."""
    path = tmp_path / "c"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=sentence):
        configfile.load_container(path, unwarned)


def test_yaml_that_grows_by_references_stops_at_a_bound(tmp_path: Path) -> None:
    """Nine lines can name 10**9 values; reading them must end, and soon."""
    lines = ["a: &a [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]" for old, new in zip("abcdefg", "bcdefgh", strict=True)]
    bomb = tmp_path / "bomb.yaml"
    bomb.write_text("\n".join(lines) + "\nargs: *h\n")
    with pytest.raises(BadInput):
        configfile.load_container(bomb, unwarned)
    mounts = {
        "metadata": {"name": "c"},
        "image": {"image": "i"},
        "mounts": [{"uidMappings": [{"length": 1}] * 100}] * 2000,
    }
    wide = tmp_path / "wide.yaml"
    wide.write_text(yaml.dump(mounts))
    with pytest.raises(BadInput, match=f"more than {configfile.VALUES_MAX} values"):
        configfile.load_container(wide, unwarned)


def test_enum_short_name_is_understood(tmp_path: Path) -> None:
    """People write SIGTERM and HOST_TO_CONTAINER as they know them from elsewhere."""
    values = container(stop_signal="SIGTERM", mounts=[{"propagation": "host_to_container"}])
    config = configfile.load_container(write(tmp_path, values), unwarned)
    assert config.stop_signal == pb.SIGNAL_SIGTERM
    assert config.mounts[0].propagation == pb.PROPAGATION_HOST_TO_CONTAINER


def test_pod_file_of_old_crio_is_mapped_with_warnings(tmp_path: Path) -> None:
    """The files of CRI-O's first releases still run: each old key is moved or named as ignored."""
    values = {
        "metadata": {"name": "podsandbox1", "uid": "u", "namespace": "n", "attempt": 1},
        "dns_options": {"servers": ["server1.example.com"]},
        "port_mappings": [{"name": "port_map1", "protocol": 1, "container_port": 80, "host_port": 4888}],
        "resources": {"cpu": {"limits": 3}},
        "linux": {
            "cgroup_parent": "podsandbox1.slice",
            "namespace_options": {"host_network": True, "host_pid": False, "host_ipc": False},
        },
    }
    warnings: list[str] = []
    config = configfile.load_pod(write(tmp_path, values), warnings.append)
    assert list(config.dns_config.servers) == ["server1.example.com"]
    assert config.port_mappings[0].protocol == pb.UDP
    options = config.linux.security_context.namespace_options
    assert (options.network, options.pid, options.ipc) == (pb.NODE, pb.CONTAINER, pb.POD)
    told = [warning.removeprefix(f"{tmp_path}/pod.json: ").partition(":")[0] for warning in warnings]
    where = "linux.security_context.namespace_options"
    assert told == [
        "dns_options",
        "resources",
        "port_mappings[0].name",
        "linux.namespace_options",
        f"{where}.host_network",
        f"{where}.host_pid",
        f"{where}.host_ipc",
    ]


def test_container_file_of_old_crio_is_mapped_with_warnings(tmp_path: Path) -> None:
    """Capabilities, user, privileges and the docker:// form moved since; none may be lost on the way."""
    values = {
        "metadata": {"name": "c"},
        "image": {"image": "docker://redis:latest"},
        "privileged": True,
        "readonly_rootfs": True,
        "linux": {
            "capabilities": {"add_capabilities": ["setuid"], "drop_capabilities": ["audit_write"]},
            "selinux_options": {"user": "system_u"},
            "user": {"uid": 5, "gid": 300, "additional_gids": [400, 401]},
        },
    }
    warnings: list[str] = []
    config = configfile.load_container(write(tmp_path, values), warnings.append)
    assert config.image.image == "redis:latest"
    context = config.linux.security_context
    assert context.privileged and context.readonly_rootfs
    assert list(context.capabilities.add_capabilities) == ["setuid"]
    assert context.selinux_options.user == "system_u"
    assert (context.run_as_user.value, context.run_as_group.value) == (5, 300)
    assert list(context.supplemental_groups) == [400, 401]
    assert len(warnings) == 8


def test_old_and_present_key_with_different_values_is_refused(tmp_path: Path) -> None:
    """Two answers to one question: neither is guessed."""
    values = container(privileged=True, linux={"security_context": {"privileged": False}})
    with pytest.raises(BadInput, match=r"privileged: an old key for linux\.security_context\.privileged"):
        configfile.load_container(write(tmp_path, values), lambda _: None)


def test_examples_are_read_without_a_warning_and_stand_at_the_seeds_path() -> None:
    """The files that the documentation starts from."""
    pod = configfile.load_pod(EXAMPLES / "sandbox_config.json", unwarned)
    redis = configfile.load_container(EXAMPLES / "container_redis.json", unwarned)
    assert pod.metadata.name == "podsandbox1" and redis.image.image == "redis:alpine"
    for name in ("sandbox_config.json", "container_redis.json"):
        assert (SEED_PATH / name).samefile(EXAMPLES / name)


def test_missing_uid_is_made_up(tmp_path: Path) -> None:
    """As crictl does: files made for it may have none, and servers want one."""
    path = write(tmp_path, {"metadata": {"name": "p", "namespace": "n"}})
    first, second = (configfile.load_pod(path, unwarned).metadata.uid for _ in range(2))
    assert first and second and first != second
