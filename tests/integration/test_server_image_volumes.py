"""Images as volumes (CRI, Mount.image), seen from inside containers and from the host."""

from collections.abc import Iterator
from typing import Any

import pytest
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """The images of this module."""
    return ("busybox", "told", "pause")


@pytest.fixture
def pod(crio: Crio) -> Iterator[str]:
    """A ready pod."""
    with crio.pod() as pod_id:
        yield pod_id


def of_image(image: str, path: str = "/data", sub_path: str = "", **more: Any) -> pb.Mount:
    """A mount of an image."""
    return pb.Mount(container_path=path, image=pb.ImageSpec(image=image), image_sub_path=sub_path, **more)


def test_image_volume_shows_the_image_and_cannot_be_written_or_run(crio: Crio, pod: str) -> None:
    """Kubernetes promises content that is read-only and not executable."""
    script = "cat /data/etc/passwd; touch /data/x; echo touch $?; /data/bin/busybox true; echo run $?"
    code, text = crio.run(pod, script, mounts=[of_image(crio.images.told)])
    assert code == 0, text
    assert "web:x:1234:2345" in text
    assert "touch 1" in text and "Read-only file system" in text
    assert "run 126" in text and "Permission denied" in text


def test_image_volume_with_a_sub_path_shows_that_alone(crio: Crio, pod: str) -> None:
    """CRI, Mount.image_sub_path: a directory or a file of the image; image and volume may be the same image."""
    mounts = [
        of_image(crio.images.told, "/dir", "etc"),
        of_image(crio.images.told, "/file", "etc/group"),
        of_image(crio.images.told, "/whole"),
    ]
    code, text = crio.run(pod, "ls /dir; cat /file; ls -d /whole/srv", image=crio.images.told, mounts=mounts)
    assert code == 0, text
    assert {"passwd", "group"} <= set(text.split())
    assert "extra:x:3456:web" in text and "/whole/srv" in text


@pytest.mark.parametrize(
    ("mount", "word", "code"),
    [
        ({"sub_path": "no/such"}, "image_sub_path", StatusCode.FAILED_PRECONDITION),
        ({"sub_path": "../../etc"}, "image_sub_path", StatusCode.INVALID_ARGUMENT),
        ({"sub_path": "/etc"}, "image_sub_path", StatusCode.INVALID_ARGUMENT),
        ({"host_path": "/etc"}, "host_path", StatusCode.INVALID_ARGUMENT),
    ],
)
def test_image_volume_that_cannot_be_is_refused_and_leaves_nothing(
    crio: Crio, pod: str, mount: dict[str, str], word: str, code: StatusCode
) -> None:
    """CRI: a sub path that is not there is an error; one that leads out is never followed."""
    before = crio.left()
    config = crio.container_config(["true"], mounts=[of_image(crio.images.told, **mount)])
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    assert (refused.code, word in refused.message) == (code, True), refused
    assert crio.left() <= before


def test_image_volume_of_an_image_that_is_not_here_is_not_found(crio: Crio, pod: str) -> None:
    """The kubelet pulls the image of a volume before it creates the container."""
    config = crio.container_config(["true"], mounts=[of_image("localhost:1/nothing:here")])
    refused = crio.client.refusal(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
    assert refused.code is StatusCode.NOT_FOUND and "mounts[0]" in refused.message


def test_image_that_a_container_mounts_stays_until_the_container_is_gone_r16(crio: Crio, pod: str) -> None:
    """R16: the image of a volume is as much in use as the container's own, also after a restart of the server."""
    container = crio.begin(pod, ["sleep", "1000"], mounts=[of_image(crio.images.told)])
    remove = pb.RemoveImageRequest(image=pb.ImageSpec(image=crio.images.told))
    try:
        refused = crio.client.refusal(remove)
        assert refused.code is StatusCode.FAILED_PRECONDITION and container in refused.message
        crio.restart()
        assert crio.client.refusal(remove).code is StatusCode.FAILED_PRECONDITION
        assert "web" in crio.output(container, "cat", "/data/etc/passwd")
        assert crio.status(container).mounts[0].image.image == crio.images.told
        crio.stop(container)
        crio.client(pb.RemoveContainerRequest(container_id=container))
        crio.client(remove)
    finally:
        crio.pull(crio.images.told)
