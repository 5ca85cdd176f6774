"""Devices of the Container Device Interface: names, specifications, which of them counts, and what they change."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crio_core.cri import CDIDevice, ContainerConfig
from crio_core.errors import Code, OperationError
from crio_core.oci.cdi import CdiMount, CdiSpec, ContainerEdits, DeviceNode, Hook, asked, edit, parse, resolve

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["kind", "devices", "containerEdits", "name", "env", "deviceNodes", "path", "mounts", "hooks"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
DOCUMENT = {
    "cdiVersion": "0.6.0",
    "kind": "vendor.com/gpu",
    "containerEdits": {"env": ["DRIVER=7"], "hooks": [{"hookName": "createContainer", "path": "/bin/hook"}]},
    "devices": [
        {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0", "type": "c", "major": 9, "minor": 0}]}},
        {"name": "1", "containerEdits": {"env": ["SECOND=yes"], "additionalGids": [44]}},
        {"name": "cache", "containerEdits": {"intelRdt": {"closID": "x"}}},
    ],
}


def spec_of_a_container() -> dict[str, Any]:
    return {
        "process": {"user": {"uid": 5, "gid": 6, "additionalGids": [7]}, "env": ["PATH=/bin", "DRIVER=none"]},
        "mounts": [{"destination": "/proc"}, {"destination": "/data/inner"}, {"destination": "/lib/driver"}],
        "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }


def test_names_come_from_the_field_and_from_annotations_once_each() -> None:
    """A kubelet tells them in both ways."""
    config = ContainerConfig(
        CDI_devices=(CDIDevice(name="vendor.com/gpu=0"), CDIDevice(name="vendor.com/gpu=1")),
        annotations={"cdi.k8s.io/plugin": "vendor.com/gpu=1,other.org/net=eth-0", "else": "x"},
    )
    assert asked(config) == ("vendor.com/gpu=0", "vendor.com/gpu=1", "other.org/net=eth-0")


@pytest.mark.parametrize(
    "name", ["", "gpu", "vendor.com/gpu", "vendor.com/gpu=", "/gpu=0", "a/b/c=0", "v/g=0\n", "0v/g=0"]
)
def test_what_is_no_name_is_refused_with_its_field(name: str) -> None:
    """Nothing is looked for under such a name."""
    with pytest.raises(OperationError, match=r"config\.CDI_devices\[0\]") as refused:
        asked(ContainerConfig(CDI_devices=(CDIDevice(name=name),)))
    assert refused.value.code is Code.INVALID_ARGUMENT


def test_what_all_devices_need_comes_once_and_first() -> None:
    """The devices follow in the order in which they were asked for."""
    found = resolve(["vendor.com/gpu=1", "vendor.com/gpu=0"], [[parse("/etc/cdi/v.json", DOCUMENT)]])
    assert found == ContainerEdits(
        env=("DRIVER=7", "SECOND=yes"),
        hooks=(Hook(hookName="createContainer", path="/bin/hook"),),
        additionalGids=(44,),
        deviceNodes=(DeviceNode(path="/dev/gpu0", type="c", major=9, minor=0),),
    )
    assert resolve([], []) == ContainerEdits()


def _specs(*origins: str) -> list[CdiSpec]:
    device = ContainerEdits(env=("FROM=here",))
    return [CdiSpec(origin=one, kind="v/g", edits=ContainerEdits(), devices={"0": device}) for one in origins]


def test_a_later_directory_comes_first_and_two_files_of_one_directory_do_not_agree() -> None:
    """What a tool writes at each boot stands over what a package brought; of two equals nobody knows which is meant."""
    assert resolve(["v/g=0"], [_specs("/a/1", "/a/2"), _specs("/b/1")]).env == ("FROM=here",)
    with pytest.raises(OperationError, match="/a/1 and /a/2 both have it") as refused:
        resolve(["v/g=0"], [_specs("/a/1", "/a/2"), []])
    assert refused.value.code is Code.FAILED_PRECONDITION


def test_a_device_that_is_not_there_or_needs_more_is_refused() -> None:
    """A program would work without it, and nobody would know why it is slow."""
    specs = [[parse("/etc/cdi/v.json", DOCUMENT)]]
    with pytest.raises(OperationError, match=r"'vendor\.com/gpu=9': no specification has it \(searched: /etc/cdi\)"):
        resolve(["vendor.com/gpu=9"], specs, "/etc/cdi")
    with pytest.raises(OperationError, match="intelRdt cannot be given"):
        resolve(["vendor.com/gpu=cache"], specs)


@given(JSON)
def test_any_document_is_read_or_refused(document: Any) -> None:
    """A vendor's mistake is told, and breaks nothing."""
    with suppress(OperationError):
        assert parse("/etc/cdi/v.json", document).kind == document["kind"]


def test_edits_are_made_and_leave_the_rest_alone() -> None:
    """Variables are replaced, groups added, nodes allowed, and a mount hides nothing that is mounted inside it."""
    spec = spec_of_a_container()
    edits = ContainerEdits(
        env=("DRIVER=7", "NEW=a=b"),
        additionalGids=(0, 7, 44),
        deviceNodes=(
            DeviceNode(path="/dev/gpu0", type="u", major=9, minor=1, permissions="rw"),
            DeviceNode(path="/dev/pipe", type="p", uid=0, gid=0, fileMode=0o600),
        ),
        mounts=(
            CdiMount(hostPath="/opt/driver", containerPath="/lib/driver", options=("ro", "bind")),
            CdiMount(hostPath="/srv/data", containerPath="/data"),
        ),
        hooks=(Hook(hookName="createContainer", path="/bin/hook", args=("hook", "-v"), env=("A=1",), timeout=5),),
    )
    edit(spec, edits, everything=False)
    assert spec["process"]["env"] == ["PATH=/bin", "DRIVER=7", "NEW=a=b"]
    assert spec["process"]["user"]["additionalGids"] == [7, 44]
    assert spec["linux"]["devices"] == [
        {"path": "/dev/gpu0", "type": "c", "fileMode": 0o666, "major": 9, "minor": 1, "uid": 5, "gid": 6},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600, "uid": 0, "gid": 0},
    ]
    assert spec["linux"]["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 9, "minor": 1, "access": "rw"},
    ]
    assert spec["mounts"] == [
        {"destination": "/proc"},
        {"destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind"]},
        {"destination": "/data/inner"},
        {"destination": "/lib/driver", "type": "bind", "source": "/opt/driver", "options": ["ro", "bind"]},
    ]
    assert spec["hooks"] == {
        "createContainer": [{"path": "/bin/hook", "args": ["hook", "-v"], "env": ["A=1"], "timeout": 5}]
    }


def test_no_edits_change_nothing_and_a_privileged_container_needs_no_rule() -> None:
    """It may use every device anyway."""
    spec = spec_of_a_container()
    edit(spec, ContainerEdits(), everything=False)
    assert spec == spec_of_a_container()
    edit(spec, ContainerEdits(deviceNodes=(DeviceNode(path="/dev/a", type="b", major=1, minor=2),)), everything=True)
    assert spec["linux"]["resources"] == spec_of_a_container()["linux"]["resources"]


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        (ContainerEdits(hooks=(Hook(hookName="afterwards", path="/bin/x"),)), "hookName"),
        (ContainerEdits(hooks=(Hook(hookName="poststop", path="x"),)), "path of a CDI hook"),
        (ContainerEdits(hooks=(Hook(hookName="poststop", path="/x", timeout=0),)), "timeout"),
        (ContainerEdits(mounts=(CdiMount(hostPath="/a", containerPath="/a/../b"),)), "containerPath"),
        (ContainerEdits(deviceNodes=(DeviceNode(path="/proc/x", type="c", major=1, minor=1),)), "/proc/x"),
        (ContainerEdits(deviceNodes=(DeviceNode(path="/dev/x", type="c", permissions="x"),)), "permissions"),
    ],
)
def test_what_no_spec_can_say_is_refused(edits: ContainerEdits, named: str) -> None:
    """The vendor's mistake is named, before the OCI runtime meets it."""
    with pytest.raises(OperationError, match=named) as refused:
        edit(spec_of_a_container(), edits, everything=False)
    assert refused.value.code is Code.INVALID_ARGUMENT
