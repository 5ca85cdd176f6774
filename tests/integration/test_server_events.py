"""GetContainerEvents: each change of a container and of a pod, told as it happens to everybody who asked."""

import queue
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio
from tests.integration.shown import shown
from tests.integration.waiting import WAIT_S

pytestmark = pytest.mark.integration

CREATED, STARTED = pb.CONTAINER_CREATED_EVENT, pb.CONTAINER_STARTED_EVENT
STOPPED, DELETED = pb.CONTAINER_STOPPED_EVENT, pb.CONTAINER_DELETED_EVENT


class Heard:
    """What one client is told, from when the server has begun to answer it."""

    def __init__(self, crio: Crio) -> None:
        self.stream: Any = crio.client(pb.GetEventsRequest(), timeout_s=10 * WAIT_S)
        self.stream.initial_metadata()
        self.events: queue.Queue[pb.ContainerEventResponse] = queue.Queue()
        self.ended: grpc.RpcError | None = None
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        try:
            for event in self.stream:
                self.events.put(event)
        except grpc.RpcError as error:
            self.ended = error

    def take(self, count: int) -> list[pb.ContainerEventResponse]:
        """The next ones."""
        return [self.events.get(timeout=WAIT_S) for _ in range(count)]

    def end(self) -> None:
        self.stream.cancel()
        self.reader.join(WAIT_S)


@contextmanager
def _heard(crio: Crio) -> Iterator[Heard]:
    heard = Heard(crio)
    try:
        yield heard
    finally:
        heard.end()


def _kinds(events: list[pb.ContainerEventResponse]) -> list[tuple[int, str]]:
    return [(one.container_event_type, one.container_id) for one in events]


def test_two_clients_are_told_the_same_life_with_its_pod_and_exit(crio: Crio) -> None:
    """R35: nothing twice, nothing left out, in order; and the exit code comes with the event of the exit."""
    with _heard(crio) as first, _heard(crio) as second:
        pod = crio.run_pod()
        container = crio.create(pod, crio.container_config(["sh", "-c", "exit 3"]))
        crio.client(pb.StartContainerRequest(container_id=container))
        told = first.take(5)
        crio.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        told += first.take(3)
        assert _kinds(told) == [
            (CREATED, pod),
            (STARTED, pod),
            (CREATED, container),
            (STARTED, container),
            (STOPPED, container),
            (STOPPED, pod),
            (DELETED, container),
            (DELETED, pod),
        ]
        assert second.take(8) == told
        assert first.events.empty() and second.events.empty()
    assert {one.pod_sandbox_status.id for one in told} == {pod}
    assert [one.created_at for one in told] == sorted(one.created_at for one in told)
    (exited,) = told[4].containers_statuses
    assert (exited.id, exited.state, exited.exit_code) == (container, pb.CONTAINER_EXITED, 3)
    assert told[1].pod_sandbox_status.network.ip
    assert told[1].pod_sandbox_status.state == pb.SANDBOX_READY
    assert told[5].pod_sandbox_status.state == pb.SANDBOX_NOTREADY


def test_an_end_of_the_server_ends_the_stream_and_is_not_held_up_by_it(crio: Crio) -> None:
    """Who listens learns that it has to list and to listen anew; what happens after that is told."""
    with crio.pod() as pod, _heard(crio) as before:
        container = crio.create(pod, crio.container_config(["sleep", "1000"]))
        crio.client(pb.StartContainerRequest(container_id=container))
        assert _kinds(before.take(2)) == [(CREATED, container), (STARTED, container)]
        crio.restart()
        before.reader.join(WAIT_S)
        assert before.ended is not None
        with _heard(crio) as after:
            crio.client(pb.StopContainerRequest(container_id=container))
            assert _kinds(after.take(1)) == [(STOPPED, container)]


def test_crioctl_shows_events_until_it_is_interrupted(crio: Crio) -> None:
    """A line for each, of the pod that was asked for alone."""
    command = (sys.executable, "-m", "crio_server.crioctl", "-r", f"unix://{crio.site.socket}", "events")
    with crio.pod() as pod, crio.pod() as other, shown(*command, "--pod", pod) as events:

        def come_and_go() -> None:
            for one in (other, pod):
                made = crio.create(one, crio.container_config(["true"]))
                crio.client(pb.RemoveContainerRequest(container_id=made))

        events.once_it_listens(come_and_go)
        container = crio.create(pod, crio.container_config(["true"]))
        crio.client(pb.StartContainerRequest(container_id=container))
        told = events.until(lambda words: words[1:4] == ["stopped", "container", container[:13]])
        assert [one[1] for one in told if one[3] == container[:13]] == ["created", "started", "stopped"]
        assert " ".join(told[-1]).endswith("exit code 0, Completed")
        assert other[:13] not in {word for one in told for word in one}
        code, said = events.interrupt()
    assert (code, said.strip()) == (130, "crioctl: interrupted")
