"""Attach over a real server: clients of a container's first process, with our monitors and with Debian's conmon."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from grpc import StatusCode

from crio_core.streaming.protocol import Wire
from crio_core.streaming.status import Exited
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Site
from tests.integration.streaming_client import Command
from tests.integration.waiting import wait_for

WIRES = (Wire.SPDY, Wire.WEBSOCKET)
ECHO = "echo ready; while read line; do echo got $line; echo told $line >&2; done; echo over; exit 6"


@pytest.fixture(scope="module", params=["built-in", "conmon"])
def crio(request: pytest.FixtureRequest, shared_site: Site) -> Iterator[Crio]:
    """A server with either monitor."""
    flags = ("--conmon", shutil.which("conmon") or "") if request.param == "conmon" else ()
    with Crio(shared_site, *flags) as crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        yield crio
        crio.remove_all()
        crio.assert_clean()


@pytest.fixture
def pod(crio: Crio) -> Iterator[str]:
    with crio.pod() as pod:
        yield pod


def attach(crio: Crio, container_id: str, wire: Wire = Wire.SPDY, **streams: bool) -> Command:
    """A client of a container's first process."""
    wants = {"stdin": True, "stdout": True, "stderr": True} | streams
    answer: pb.AttachResponse = crio.client(pb.AttachRequest(container_id=container_id, **wants))
    return Command(answer.url, wire, None, **wants)


def begin(crio: Crio, pod: str, script: str, **fields: Any) -> str:
    """A container that runs a shell script and has input."""
    return crio.begin(pod, ["sh", "-c", script], **({"stdin": True} | fields))


@pytest.mark.parametrize("wire", WIRES)
def test_client_gives_input_gets_both_outputs_and_hears_the_end(crio: Crio, pod: str, wire: Wire) -> None:
    """`kubectl attach -i`; the end of input of a stdin_once container ends it."""
    container = begin(crio, pod, ECHO, stdin_once=True)
    with attach(crio, container, wire) as client:
        client.send(b"one\n")
        client.until(lambda: b"got one\n" in client.stdout and b"told one\n" in client.stderr)
        client.end_input()
        assert client.result() == Exited(code=0)
        assert client.stdout.endswith(b"over\n")
    assert crio.ended(container).exit_code == 6


def test_two_clients_get_the_same_output_and_one_that_leaves_takes_nothing_away(crio: Crio, pod: str) -> None:
    """A container's streams are not its first client's."""
    container = begin(crio, pod, ECHO)
    with attach(crio, container) as second:
        with attach(crio, container) as first:
            first.send(b"one\n")
            first.until(lambda: b"told one\n" in first.stderr and b"got one\n" in first.stdout)
            second.until(lambda: b"told one\n" in second.stderr and b"got one\n" in second.stdout)
        second.send(b"two\n")
        second.until(lambda: b"got two\n" in second.stdout)
    assert crio.status(container).state == pb.CONTAINER_RUNNING
    with attach(crio, container) as third:
        third.send(b"three\n")
        third.until(lambda: b"got three\n" in third.stdout)


def test_terminal_is_shared_and_takes_the_clients_size(crio: Crio, pod: str) -> None:
    """`kubectl attach -it`."""
    container = begin(crio, pod, "echo ready; while read line; do stty size; done", tty=True)
    with attach(crio, container, stderr=False, tty=True) as client:
        client.resize(111, 33)

        def has_size() -> bool:
            client.send(b"x\n")
            client.step()
            return b"33 111\r\n" in client.stdout

        wait_for("the terminal's new size", has_size)
    assert crio.status(container).state == pb.CONTAINER_RUNNING


def test_container_without_input_gives_output_only(crio: Crio, pod: str) -> None:
    """What is typed is for nobody, and does no harm."""
    container = crio.begin(pod, ["sh", "-c", "while :; do echo tick; sleep 0.1; done"])
    with attach(crio, container) as client:
        client.send(b"x" * 100_000)
        client.until(lambda: b"tick\n" in client.stdout)
    with attach(crio, container, stdin=False, stderr=False) as client:
        client.until(lambda: b"tick\n" in client.stdout)


def test_container_that_is_stopped_ends_its_clients(crio: Crio, pod: str) -> None:
    """They hear what it said last."""
    container = begin(crio, pod, "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.05; done")
    with attach(crio, container) as client:
        crio.stop(container, 10)
        assert client.result() == Exited(code=0)
        assert client.stdout.endswith(b"bye\n")


def test_client_outlives_no_server_and_the_next_server_has_the_streams_still(crio: Crio, pod: str) -> None:
    """The monitor keeps them."""
    container = begin(crio, pod, ECHO)
    with attach(crio, container) as client:
        client.send(b"one\n")
        client.until(lambda: b"got one\n" in client.stdout)
        crio.restart()
    with attach(crio, container) as client:
        client.send(b"two\n")
        client.until(lambda: b"got two\n" in client.stdout)


def test_container_that_does_not_run_is_refused(crio: Crio, pod: str) -> None:
    """Before anybody connects."""
    container = crio.create(pod, crio.container_config(["true"]))
    refused = crio.client.refusal(pb.AttachRequest(container_id=container, stdout=True))
    assert refused.code is StatusCode.FAILED_PRECONDITION and "created" in refused.message
    refused = crio.client.refusal(pb.AttachRequest(container_id=container, stdout=True, stderr=True, tty=True))
    assert refused.code is StatusCode.INVALID_ARGUMENT
