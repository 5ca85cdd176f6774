"""crioctl against a CRI server that says what a test wants: refusals, silence, broken connections, hostile names.

What a well-behaved server answers is tested against containerd.
"""

import asyncio
import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.message import Message
from grpclib.const import Status

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.fake_cri import A_ID, B_ID, POD_ID, WAIT_S, Place, fake_cri, refuse

pytestmark = pytest.mark.integration


@pytest.fixture
def place() -> Iterator[Place]:
    """The server."""
    with fake_cri() as here:
        yield here


@pytest.mark.parametrize("status", [Status.NOT_FOUND, Status.INTERNAL, Status.RESOURCE_EXHAUSTED, Status.UNKNOWN])
def test_refusal_of_the_server_exits_1_with_code_and_text(place: Place, status: Status) -> None:
    """A script can tell that the server said no; a person reads which call, which code and why."""
    place.fake.answers["ListPodSandbox"] = refuse(status, "the moon is full")
    assert place.run("pods") == (1, "", f"crioctl: ListPodSandbox: {status.name}: the moon is full\n")


@pytest.mark.parametrize(("command", "call"), [("stats", "ListContainerStats"), ("events", "GetContainerEvents")])
def test_call_that_the_server_lacks_names_server_and_call(place: Place, command: str, call: str) -> None:
    """stats, for one, is not offered by every server; nor are events, for which nobody should wait then."""
    code, _, err = place.run(command)
    assert code == 1 and "UNIMPLEMENTED" in err and f"{place.socket} does not offer {call}" in err


@pytest.mark.parametrize("kind", ["missing", "stale", "file", "web server", "silent", "below a file"])
def test_endpoint_without_a_cri_server_exits_3_and_names_it(place: Place, kind: str) -> None:
    """Whatever stands at the path, the answer comes soon, has its own exit code, and says what was tried."""
    path = place.directory / "other.sock"
    with contextlib.ExitStack() as stack:
        if kind in ("stale", "web server", "silent"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(path))
            if kind == "stale":
                listener.close()
            else:
                listener.listen(8)
            if kind == "web server":
                thread = threading.Thread(target=_answer_in_http_1, args=(listener,))
                thread.start()
                stack.callback(thread.join, WAIT_S)
        elif kind == "file":
            path.write_text("")
        elif kind == "below a file":
            (place.directory / "plain").write_text("")
            path = place.directory / "plain" / "cri.sock"
        code, out, err = place.run("-t", "500ms", "pods", endpoint=path)
    assert (code, out) == (3, "")
    assert f"unix://{path}" in err


def _answer_in_http_1(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1024)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


def test_server_without_cri_v1_exits_3(place: Place) -> None:
    """An old server with v1alpha2 only is alive, and still of no use here."""
    place.fake.answers["Version"] = refuse(Status.UNIMPLEMENTED, "unknown service runtime.v1.RuntimeService")
    code, _, err = place.run("pods")
    assert code == 3 and "does not offer CRI v1" in err


def test_endpoint_comes_from_environment_flag_or_client_file(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts set the endpoint once, in the way that crictl's or old crioctl's users do."""
    command = [sys.executable, "-m", "crio_server.crioctl"]
    client_file = place.directory / "crictl.yaml"
    client_file.write_text(f"runtime-endpoint: unix://{place.socket}\nimage-endpoint: unix://{place.directory}/none\n")
    monkeypatch.delenv("CONTAINER_RUNTIME_ENDPOINT", raising=False)
    monkeypatch.delenv("IMAGE_SERVICE_ENDPOINT", raising=False)
    for options, environment, code in (
        (("--connect", str(place.socket)), {}, 0),
        ((), {"CONTAINER_RUNTIME_ENDPOINT": f"unix://{place.socket}"}, 0),
        (("-c", str(client_file), "-i", str(place.socket)), {}, 0),
        (("-c", str(client_file)), {}, 3),
        (("-r", str(place.socket)), {"IMAGE_SERVICE_ENDPOINT": f"unix://{place.directory}/none"}, 3),
    ):
        done = subprocess.run(
            [*command, *options, "version"],
            env={**os.environ, **environment},
            capture_output=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == code, (options, environment, done)


def test_ambiguous_prefix_lists_candidates_and_touches_nothing(place: Place) -> None:
    """`rm aa` with two containers that begin so must remove neither."""
    place.containers(A_ID, B_ID)
    code, out, err = place.run("rm", "-f", "aa")
    assert (code, out) == (2, "")
    assert A_ID in err and B_ID in err and "name-aa1" in err
    assert not place.fake.requests("RemoveContainer") and not place.fake.requests("StopContainer")


def test_whole_id_goes_to_the_server_unasked(place: Place) -> None:
    """Removing what is gone is a success in CRI, so the server decides and not a list."""
    place.fake.answers["RemoveContainer"] = lambda _: pb.RemoveContainerResponse()
    assert place.run("rm", A_ID) == (0, f"{A_ID}\n", "")
    assert not place.fake.requests("ListContainers")


def test_stop_sends_its_grace(place: Place) -> None:
    """Ten seconds unless told otherwise, as CRI-O's crioctl; crictl's default of none would kill at once."""
    place.containers(A_ID)
    place.fake.answers["StopContainer"] = lambda _: pb.StopContainerResponse()
    assert place.run("stop", "aa")[0] == 0
    assert place.run("ctr", "stop", "--timeout", "3", "--id", "aa")[0] == 0
    assert [request.timeout for request in place.fake.requests("StopContainer")] == [10, 3]


def test_create_without_a_pod_file_sends_the_pods_own_configuration(place: Place) -> None:
    """`ctr create --pod --config` is not given the pod's file, and CRI wants its content: the server is asked."""
    metadata = pb.PodSandboxMetadata(name="p", namespace="n", uid="u")
    told = {"config": {"log_directory": "/logs", "linux": {"cgroup_parent": "/x"}, "an_unknown_key": 1}}
    status = pb.PodSandboxStatus(id=POD_ID, metadata=metadata, labels={"a": "b"})
    reply = pb.PodSandboxStatusResponse(status=status, info={"info": json.dumps(told)})
    place.fake.answers["PodSandboxStatus"] = lambda _: reply
    place.fake.answers["CreateContainer"] = lambda _: pb.CreateContainerResponse(container_id=A_ID)
    file = place.directory / "c.json"
    file.write_text(json.dumps({"metadata": {"name": "c"}, "image": {"image": "i"}}))
    arguments = ("ctr", "create", "--pod", POD_ID, "--config", str(file), "--name", "other", "--label", "x=y")
    assert place.run(*arguments) == (0, f"{A_ID}\n", "")
    request = place.fake.requests("CreateContainer")[0]
    assert (request.config.metadata.name, dict(request.config.labels)) == ("other", {"x": "y"})
    sent = request.sandbox_config
    assert (sent.metadata, sent.log_directory, sent.linux.cgroup_parent, dict(sent.labels)) == (
        metadata,
        "/logs",
        "/x",
        {"a": "b"},
    )


def test_bad_file_exits_2_and_sends_nothing(place: Place) -> None:
    """A file is checked before the server is troubled."""
    file = place.directory / "p.json"
    file.write_text(json.dumps({"metadata": {"name": "p", "namespace": "n"}, "hostnam": "x"}))
    code, _, err = place.run("runp", str(file))
    assert code == 2 and err == f"crioctl: {file}: hostnam: unknown key; did you mean hostname?\n"
    assert not place.fake.calls


@pytest.mark.parametrize(("given", "code"), [(0, 0), (1, 1), (137, 137), (255, 255), (-1, 1), (300, 1)])
def test_exec_exits_as_the_command_did(place: Place, given: int, code: int) -> None:
    """No failure may come out as success: 256 would be 0 if it were cut to what a process can pass on."""
    place.fake.answers["ExecSync"] = lambda _: pb.ExecSyncResponse(stdout=b"\xff\0", stderr=b"e", exit_code=given)
    with place.start("exec", "-s", A_ID, "cmd", "--flag") as child:
        out, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == code and out == b"\xff\0" and err.startswith(b"e")
    assert list(place.fake.requests("ExecSync")[0].cmd) == ["cmd", "--flag"]


HOSTILE = "evil\x1b]0;title\x07\n\x9bfake\u202e"


def test_names_from_pods_cannot_write_to_the_terminal(place: Place) -> None:
    """Names, labels, messages and paths are data of whoever made the pod; escapes in them are shown, not obeyed."""
    metadata = pb.PodSandboxMetadata(name=HOSTILE, namespace=HOSTILE)
    pods = pb.ListPodSandboxResponse(items=[pb.PodSandbox(id=POD_ID, metadata=metadata, labels={HOSTILE: HOSTILE})])
    place.fake.answers["ListPodSandbox"] = lambda _: pods
    place.containers(A_ID, labels={HOSTILE: HOSTILE}, image=pb.ImageSpec(image=HOSTILE))
    place.fake.answers["PodSandboxStatus"] = lambda _: pb.PodSandboxStatusResponse(
        status=pb.PodSandboxStatus(id=POD_ID)
    )
    place.fake.answers["ContainerStatus"] = lambda _: pb.ContainerStatusResponse(
        status=pb.ContainerStatus(id=A_ID, message=HOSTILE), info={"x": HOSTILE}
    )
    place.fake.answers["StartContainer"] = refuse(Status.INTERNAL, HOSTILE)
    for arguments in (
        ("pods",), ("pod", "list"), ("ps", "-a"), ("ctr", "list"), ("tree",), ("ctr", "status", A_ID), ("start", A_ID),
    ):  # fmt: skip
        _, out, err = place.run(*arguments)
        assert all(char.isprintable() or char in "\n\t" for char in out + err), arguments
        assert "fake" in out + err, arguments
    assert sum(1 for line in place.run("pods")[1].splitlines()) == 2


def test_table_on_a_terminal_and_in_a_pipe(place: Place) -> None:
    """People get colour, programs get none."""
    pods = pb.ListPodSandboxResponse(items=[pb.PodSandbox(id=POD_ID, metadata=pb.PodSandboxMetadata(name="nice"))])
    place.fake.answers["ListPodSandbox"] = lambda _: pods
    assert "\x1b" not in place.run("pods")[1]
    shown = _on_terminal(place, "pods")
    assert "\x1b[" in shown and "nice" in shown and POD_ID[:13] in shown


def _on_terminal(place: Place, *arguments: str, heard: Callable[[bytes], None] = lambda _: None) -> str:
    """What crioctl writes when all its streams are a terminal; `heard` is told all of it with each new piece."""
    command = [sys.executable, "-m", "crio_server.crioctl", "-r", str(place.socket), *arguments]
    controller, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "160"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as child:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # a terminal whose other side is closed ends with EIO
            while data := os.read(controller, 65536):
                shown += data
                heard(shown)
        assert child.wait(WAIT_S) == 0, shown
    os.close(controller)
    return shown.decode()


def test_pull_moves_on_a_terminal_until_it_is_done(place: Place) -> None:
    """A pull may take minutes and CRI tells nothing meanwhile: the line on the terminal shows that it goes on."""

    moved = threading.Event()

    async def slow(_: Any) -> Message:
        assert await asyncio.to_thread(moved.wait, WAIT_S)
        return pb.PullImageResponse(image_ref="sha256:" + "e" * 64)

    place.fake.answers["PullImage"] = slow
    image = pb.Image(id="sha256:" + "e" * 64, size=1234567)
    place.fake.answers["ImageStatus"] = lambda _: pb.ImageStatusResponse(image=image)

    def heard(shown: bytes) -> None:
        if shown.count(b"Pulling redis:alpine") >= 2:
            moved.set()

    shown = _on_terminal(place, "pull", "redis:alpine", heard=heard)
    assert moved.is_set()
    assert "Image is up to date for sha256:eee" in shown and "1.23MB in " in shown


def test_interrupt_during_a_pull_exits_130_without_a_traceback(place: Place) -> None:
    """Ctrl-C is an answer, and leaves no noise."""
    entered = threading.Event()

    async def endless(_: Any) -> Message:
        entered.set()
        await asyncio.sleep(WAIT_S)
        return pb.PullImageResponse()

    place.fake.answers["PullImage"] = endless
    with place.start("pull", "x") as child:
        assert entered.wait(WAIT_S)
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 130
    assert b"Traceback" not in err and err.endswith(b"crioctl: interrupted\n")


def test_reader_that_leaves_early_causes_no_noise(place: Place) -> None:
    """`crioctl ps | head -1` is no failure."""
    place.containers(*(f"{number:064x}" for number in range(5000)), labels={"a": "b" * 50})
    with place.start("ctr", "list") as child:
        assert child.stdout is not None and child.stderr is not None
        assert child.stdout.readline().startswith(b"ID: ")
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait(WAIT_S) == 0


def test_image_that_is_not_there_is_not_removed(place: Place) -> None:
    """RemoveImage succeeds for anything; a person who mistyped a name wants to know."""
    place.fake.answers["ImageStatus"] = lambda _: pb.ImageStatusResponse()
    place.fake.answers["ListImages"] = lambda _: pb.ListImagesResponse()
    code, _, err = place.run("rmi", "no/such")
    assert code == 1 and "'no/such' not found" in err
    assert not place.fake.requests("RemoveImage")


def record(number: int, stream: str = "stdout") -> str:
    return f"2026-01-01T00:00:{number % 60:02d}.000000000Z {stream} F line {number}\n"


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing", "unnamed"])
def test_log_that_is_not_a_plain_file_is_refused(place: Place, kind: str) -> None:
    """A pod that may write into the log directory must not make root read another file, or hang on a pipe."""
    log = place.directory / "c.log"
    if kind == "symlink":
        (place.directory / "secret").write_text(record(1))
        log.symlink_to(place.directory / "secret")
    elif kind == "fifo":
        os.mkfifo(log)
    elif kind == "directory":
        log.mkdir()
    place.logged(log)
    if kind == "unnamed":
        place.fake.answers["ContainerStatus"] = lambda _: pb.ContainerStatusResponse()
    code, out, err = place.run("logs", A_ID)
    assert (code, out) == (1, "")
    assert ("has no log" if kind == "unnamed" else str(log)) in err


def test_damaged_lines_are_counted_and_the_rest_is_shown(place: Place) -> None:
    """A torn write in the middle of a log costs its own line."""
    log = place.directory / "c.log"
    log.write_text(record(1) + "garbage\n" + record(2))
    place.logged(log)
    code, out, err = place.run("logs", A_ID)
    assert (code, out) == (0, "line 1\nline 2\n")
    assert "1 lines are not log records" in err


def test_follow_survives_rotation_and_truncation_and_ends_with_the_container(place: Place) -> None:
    """R38: nothing that was written is missing, whichever way the log is rotated, and the last lines come too."""
    log = place.directory / "c.log"
    log.write_text(record(1))
    place.logged(log, pb.CONTAINER_RUNNING)
    with place.start("logs", "-f", A_ID) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"line 1\n"
        with log.open("a") as late:
            log.rename(place.directory / "c.log.1")
            late.write(record(2))  # the monitor still had the old file open
        log.write_text(record(3))
        assert [child.stdout.readline() for _ in range(2)] == [b"line 2\n", b"line 3\n"]
        with log.open("a") as more:
            more.write(record(4) * 10)
            more.flush()
            assert [child.stdout.readline() for _ in range(10)] == [b"line 4\n"] * 10
            more.truncate(0)
        with log.open("a") as after:
            after.write(record(5))
        assert child.stdout.readline() == b"line 5\n"
        with log.open("a") as last:
            last.write(record(6))
        place.logged(log)
        assert child.stdout.read() == b"line 6\n"
        assert child.wait(WAIT_S) == 0


def test_hanging_call_ends_with_the_connection(place: Place) -> None:
    """A server that dies in the middle of a call is unreachable, not a refusal, and not a hang."""
    path = place.directory / "dying.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        began_s = time.monotonic()
        with place.start("-t", "10s", "pods", endpoint=path) as child:
            connection, _ = listener.accept()
            connection.recv(1024)
            connection.close()
            _, err = child.communicate(timeout=WAIT_S)
    assert child.returncode == 3 and str(path).encode() in err
    assert time.monotonic() - began_s < 10
