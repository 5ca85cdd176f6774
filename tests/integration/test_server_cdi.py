"""CDI devices on a real node: a vendor's specification, and the container that asks for a device of it."""

import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio

pytestmark = pytest.mark.integration

LOOK = (
    "ls -l /dev/criotest-node; cat /vendor/library; echo $CRIOTEST_DEVICE; id -G; "
    "echo x 2>/dev/null > /vendor/library || echo read-only"
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directories of specifications, one below the other, and what they mount."""
    return tmp_path_factory.mktemp("cdi")


@pytest.fixture(scope="module")
def server_flags(directory: Path) -> tuple[str, ...]:
    """Flags of this module's server."""
    return ("--cdi-spec-dirs", f"{directory}/etc", "--cdi-spec-dirs", f"{directory}/run")


@pytest.fixture(autouse=True)
def vendor(directory: Path) -> Iterator[None]:
    """A vendor's files."""
    for name in ("etc", "run"):
        (directory / name).mkdir(exist_ok=True)
    (directory / "library").write_text("a library of the host\n")
    hook = directory / "hook.sh"
    hook.write_text(f"#!/bin/sh\ncat > {directory}/hook-was-told\n")
    hook.chmod(0o755)
    mount = {"hostPath": f"{directory}/library", "containerPath": "/vendor/library", "options": ["ro", "rbind"]}
    document = {
        "cdiVersion": "0.6.0",
        "kind": "criotest.example/thing",
        "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": str(hook)}], "mounts": [mount]},
        "devices": [
            {
                "name": "one",
                "containerEdits": {
                    "env": ["CRIOTEST_DEVICE=one"],
                    "deviceNodes": [{"path": "/dev/criotest-node", "hostPath": "/dev/kmsg", "permissions": "r"}],
                    "additionalGids": [4444],
                },
            }
        ],
    }
    (directory / "etc/vendor.yaml").write_text(yaml.safe_dump(document))
    (directory / "etc/broken.json").write_text("{")
    yield
    for name in ("hook-was-told", "run/later.json"):
        (directory / name).unlink(missing_ok=True)


def _asking(crio: Crio, command: list[str], name: str = "criotest.example/thing=one") -> pb.ContainerConfig:
    config = crio.container_config(command)
    config.CDI_devices.add(name=name)
    config.linux.security_context.capabilities.add_capabilities.append("SYSLOG")  # Only with it the node can be opened.
    return config


def test_a_container_gets_what_the_specification_says(crio: Crio, directory: Path) -> None:
    """Node, mount, variable, group and hook; the device cgroup allows the node; what runs later has all of it too."""
    with crio.pod() as pod:
        container = crio.create(pod, _asking(crio, ["sleep", "1000"]))
        crio.client(pb.StartContainerRequest(container_id=container))
        told = crio.exec(container, "sh", "-c", LOOK).stdout.decode().splitlines()
        assert told[0].startswith("crw-rw-rw-") and "1, 11" in " ".join(told[0].split())
        assert told[1:3] == ["a library of the host", "one"]
        assert "4444" in told[3].split()
        assert told[4] == "read-only"
        assert json.loads((directory / "hook-was-told").read_text())["id"] == container
        opened = crio.exec(container, "sh", "-c", "exec 3< /dev/criotest-node && echo opened")
        assert opened.stdout == b"opened\n"


def test_what_is_written_later_counts_at_once_and_stands_over_what_was_there(crio: Crio, directory: Path) -> None:
    """A tool may write its specification anew at each boot, while the server runs."""
    later = {
        "cdiVersion": "0.6.0",
        "kind": "criotest.example/thing",
        "devices": [{"name": "one", "containerEdits": {"env": ["CRIOTEST_DEVICE=from later"]}}],
    }
    with crio.pod() as pod:
        (directory / "run/later.json").write_text(json.dumps(later))
        container = crio.create(pod, _asking(crio, ["sleep", "1000"]))
        crio.client(pb.StartContainerRequest(container_id=container))
        assert crio.exec(container, "sh", "-c", "echo $CRIOTEST_DEVICE").stdout == b"from later\n"


def test_a_device_that_is_not_there_is_refused_and_leaves_nothing(crio: Crio, directory: Path) -> None:
    """The message says where it was looked for, and which file could not be read."""
    with crio.pod() as pod:
        refused = crio.client.refusal(
            pb.CreateContainerRequest(pod_sandbox_id=pod, config=_asking(crio, ["true"], "criotest.example/thing=two"))
        )
        assert refused.code is grpc.StatusCode.FAILED_PRECONDITION
        assert "'criotest.example/thing=two': no specification has it" in refused.message
        assert f"{directory}/run" in refused.message and f"{directory}/etc/broken.json" in refused.message
        assert not crio.client(pb.ListContainersRequest()).containers
