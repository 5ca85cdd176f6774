"""Callers that come twice, at once, or go away in the middle: exactly one object, and never a bare conflict (R1)."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Refused

pytestmark = pytest.mark.integration

MOMENTS = 8
"""At how many moments of each call a client goes away."""


@pytest.fixture
def pod(crio: Crio) -> Iterator[str]:
    """A ready pod."""
    with crio.pod() as pod_id:
        yield pod_id


def abandoned(crio: Crio, request: Message, after_s: float) -> None:
    """Send a request and go away after a while, or when there is an answer."""
    future = crio.client.begin(request)
    answered(future, after_s)
    future.cancel()


def answered(future: Any, within_s: float) -> bool:
    """Wait for the answer to a call, for a while."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return done.wait(within_s)


def moments(call: Callable[[], object]) -> list[float]:
    """Times spread over the length of a call, in seconds, the first one at once."""
    begun_s = time.monotonic()
    call()
    length_s = time.monotonic() - begun_s
    return [length_s * number / (MOMENTS - 1) for number in range(MOMENTS)]


def together(crio: Crio, request: Message, count: int) -> list[Any]:
    """The answers to the same request, sent `count` times at once."""
    futures = [crio.client.begin(request) for _ in range(count)]
    answers: list[Any] = []
    for future in futures:
        try:
            answers.append(future.result())
        except grpc.RpcError as error:
            answers.append(Refused(code=error.code(), message=error.details() or ""))
    return answers


def test_sandbox_requests_cancelled_at_any_moment_and_retried_give_one_sandbox(crio: Crio) -> None:
    """R1: the kubelet gives up after two minutes and asks again; it must get the pod, not a reserved name."""
    for after_s in moments(lambda: crio.remove(crio.run_pod())):
        request = pb.RunPodSandboxRequest(config=crio.pod_config())
        abandoned(crio, request, after_s)
        abandoned(crio, request, after_s / 2)
        pod = crio.client(request).pod_sandbox_id
        assert [one.id for one in crio.client(pb.ListPodSandboxRequest()).items] == [pod]
        assert crio.client(request).pod_sandbox_id == pod
        crio.remove(pod)
    crio.assert_clean()


def test_container_requests_cancelled_at_any_moment_and_retried_give_one_container(crio: Crio, pod: str) -> None:
    """R1, for containers; the retried start runs the process once."""
    length = moments(lambda: crio.begin(pod, ["sleep", "600"], "measured"))
    for number, after_s in enumerate(length):
        main = crio.container_config(["sh", "-c", "echo started; sleep 600"], f"c{number}")
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=main)
        abandoned(crio, request, after_s)
        container = crio.client(request).container_id
        abandoned(crio, pb.StartContainerRequest(container_id=container), after_s / 3)
        crio.client(pb.StartContainerRequest(container_id=container))
        named = [
            one.id for one in crio.client(pb.ListContainersRequest()).containers if one.metadata.name == f"c{number}"
        ]
        assert named == [container]
        abandoned(crio, pb.StopContainerRequest(container_id=container, timeout=0), after_s / 3)
        abandoned(crio, pb.RemoveContainerRequest(container_id=container), after_s / 3)
        crio.client(pb.RemoveContainerRequest(container_id=container))
        remaining = {one.id for one in crio.client(pb.ListContainersRequest()).containers}
        assert container not in remaining


def test_the_same_requests_at_once_share_one_pod_and_one_container(crio: Crio) -> None:
    """Duplicates join the attempt that is under way, whoever came first."""
    config = crio.pod_config()
    pods = {answer.pod_sandbox_id for answer in together(crio, pb.RunPodSandboxRequest(config=config), 8)}
    assert len(pods) == 1
    (pod,) = pods
    main = crio.container_config(["sh", "-c", "echo once; sleep 600"])
    containers = together(crio, pb.CreateContainerRequest(pod_sandbox_id=pod, config=main), 8)
    assert len({answer.container_id for answer in containers}) == 1
    container = containers[0].container_id
    for request in (
        pb.StartContainerRequest(container_id=container),
        pb.StopContainerRequest(container_id=container, timeout=0),
        pb.RemoveContainerRequest(container_id=container),
        pb.StopPodSandboxRequest(pod_sandbox_id=pod),
        pb.RemovePodSandboxRequest(pod_sandbox_id=pod),
    ):
        assert [answer for answer in together(crio, request, 5) if isinstance(answer, Refused)] == []


def test_the_same_failing_request_at_once_fails_alike_and_leaves_nothing(crio: Crio) -> None:
    """A joined failure is everybody's, and the next attempt starts from nothing."""
    document = crio.site.network()
    document["plugins"].append({"type": "tuning", "sysctl": {"net.no.such": "1"}})
    crio.site.write_network(document)
    try:
        request = pb.RunPodSandboxRequest(config=crio.pod_config("doomed"))
        answers = together(crio, request, 4)
        assert all(isinstance(answer, Refused) for answer in answers)
        assert all("no.such" in answer.message.replace("/", ".") for answer in answers), answers
        crio.assert_clean()
    finally:
        crio.site.write_network()
    crio.remove(crio.client(request).pod_sandbox_id)


def test_a_pod_asked_for_in_another_runtime_is_a_conflict_that_says_why(crio: Crio) -> None:
    """The same name, uid and attempt mean the same pod; what it cannot be any more is refused."""
    pod = crio.run_pod(crio.pod_config("same"))
    other = crio.pod_config("same", labels={"other": "yes"})
    assert crio.run_pod(other) == pod
    other.linux.security_context.namespace_options.network = pb.NODE
    refused = crio.client.refusal(pb.RunPodSandboxRequest(config=other))
    assert refused.code is StatusCode.ALREADY_EXISTS
    assert pod in refused.message and "namespace_options.network" in refused.message
    other.metadata.attempt = 1
    crio.remove(crio.client(pb.RunPodSandboxRequest(config=other)).pod_sandbox_id, pod)


def test_a_request_put_differently_after_a_kill_gets_the_same_pod_and_container(own_crio: Crio) -> None:
    """R1, R4: maps are written in random order, and what a server makes of one differs from process to process."""
    labels = {f"label-{number}": str(number) for number in range(8)}
    config = own_crio.pod_config("again", labels=labels, annotations=labels)
    pod = own_crio.run_pod(config)
    variables = [pb.KeyValue(key=key, value=value.encode()) for key, value in labels.items()]
    main = own_crio.container_config(["sleep", "600"], labels=labels, envs=variables)
    container = own_crio.create(pod, main)
    for _ in range(3):
        own_crio.restart(signal.SIGKILL)
        for message in (config, main):
            message.ClearField("labels")
            message.labels.update(reversed(labels.items()))
        main.ClearField("envs")
        main.envs.extend(reversed(variables))
        assert own_crio.run_pod(config) == pod
        assert own_crio.create(pod, main) == container


def test_pulls_cancelled_and_repeated_end_in_one_image(crio: Crio) -> None:
    """R12, R14: a pull that nobody waits for goes on or begins anew; every waiter gets its answer."""
    request = pb.PullImageRequest(image=pb.ImageSpec(image=crio.images.told))
    for after_s in (0, 0.01, 0.05):
        abandoned(crio, request, after_s)
    refs = {answer.image_ref for answer in together(crio, request, 6)}
    assert len(refs) == 1
    assert len(crio.client(pb.ListImagesRequest()).images) == 2
    crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=refs.pop())))


def test_stop_of_a_pod_while_its_container_is_made_ends_both(crio: Crio) -> None:
    """The node shuts a pod down while the kubelet still fills it: no container survives."""
    for after_s in (0.0, 0.02, 0.05):
        pod = crio.run_pod()
        config = crio.container_config(["sleep", "600"])
        making = crio.client.begin(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
        answered(making, after_s)
        crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        try:
            made = making.result().container_id
            assert crio.status(made).state == pb.CONTAINER_EXITED
        except grpc.RpcError:
            pass  # Refused because of the stop: just as good.
        assert not [pid for pid in crio.left() if pid.startswith("process") and "sleep" in pid]
        crio.remove(pod)
