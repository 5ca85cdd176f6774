"""Streamed lists (CRI, Stream*): the same items as the unary ones, in messages of bounded size."""

import pytest

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def pulled() -> tuple[str, ...]:
    """The images of this module."""
    return ("busybox", "told")


def test_streamed_lists_hold_what_the_unary_ones_hold(crio: Crio) -> None:
    """R34: a client may use either; filters mean the same in both."""
    with crio.pod(labels={"which": "a"}) as first, crio.pod(labels={"which": "b"}) as second:
        containers = {crio.create(pod, crio.container_config(["true"])) for pod in (first, second)}
        images = [image for part in crio.client(pb.StreamImagesRequest()) for image in part.images]
        assert images == list(crio.client(pb.ListImagesRequest()).images) and len(images) == 2
        pods = [pod for part in crio.client(pb.StreamPodSandboxesRequest()) for pod in part.pod_sandboxes]
        assert pods == list(crio.client(pb.ListPodSandboxRequest()).items) and len(pods) == 2
        found = [one for part in crio.client(pb.StreamContainersRequest()) for one in part.containers]
        assert found == list(crio.client(pb.ListContainersRequest()).containers)
        assert {one.id for one in found} == containers
        only = pb.PodSandboxFilter(label_selector={"which": "b"})
        [part] = crio.client(pb.StreamPodSandboxesRequest(filter=only))
        assert [pod.id for pod in part.pod_sandboxes] == [second]
        nothing = pb.ImageFilter(image=pb.ImageSpec(image="localhost/none:1"))
        assert list(crio.client(pb.StreamImagesRequest(filter=nothing))) == []
