"""A CRI server that says what a test wants, and crioctl as a process beside it.

The server is grpclib's, in a thread of this process; crioctl runs as a process of its own, so that exit codes and
streams are what a script sees.
"""

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.leftovers import MINE

WAIT_S = 20.0
A_ID, B_ID, POD_ID = "aa" + "1" * 62, "aa" + "2" * 62, "d" * 64

Answer = Callable[[Any], Message | Awaitable[Message]]


class FakeCri:
    """Both CRI services; `answers` says what each call gets, and `calls` keeps every request."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {
            "Version": lambda _: pb.VersionResponse(version="0.1.0", runtime_name="fake")
        }
        self.calls: list[tuple[str, Any]] = []

    def __mapping__(self) -> dict[str, Handler]:
        mapping: dict[str, Handler] = {}
        for service in pb.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                types = (getattr(pb, method.input_type.name), getattr(pb, method.output_type.name))
                path = f"/{service.full_name}/{method.name}"
                mapping[path] = Handler(self._handler(method.name), Cardinality.UNARY_UNARY, *types)
        return mapping

    def _handler(self, name: str) -> Callable[[Any], Awaitable[None]]:
        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            self.calls.append((name, request))
            answer = self.answers.get(name)
            if answer is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"{name} is not offered")
            reply = answer(request)
            await stream.send_message(reply if isinstance(reply, Message) else await reply)

        return handle

    def requests(self, name: str) -> list[Any]:
        return [request for called, request in self.calls if called == name]


class Place:
    """A served FakeCri, a directory with a short path, and a way to run crioctl."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "cri.sock"
        self.fake = FakeCri()

    def start(self, *arguments: str, endpoint: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "crio_server.crioctl", "-r", str(endpoint or self.socket), *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, *arguments: str, endpoint: Path | None = None) -> tuple[int, str, str]:
        with self.start(*arguments, endpoint=endpoint) as child:
            out, err = child.communicate(timeout=WAIT_S)
        assert b"Traceback" not in err, err.decode()
        return child.returncode, out.decode(), err.decode()

    def containers(self, *ids: str, **fields: Any) -> None:
        listed = [
            pb.Container(id=one, pod_sandbox_id=POD_ID, metadata=pb.ContainerMetadata(name=f"name-{one[:3]}"), **fields)
            for one in ids
        ]
        self.fake.answers["ListContainers"] = lambda _: pb.ListContainersResponse(containers=listed)

    def logged(self, log: Path, state: pb.ContainerState = pb.CONTAINER_EXITED) -> None:
        self.containers(A_ID)
        status = pb.ContainerStatus(id=A_ID, log_path=str(log), state=state)
        self.fake.answers["ContainerStatus"] = lambda _: pb.ContainerStatusResponse(status=status)


@contextlib.contextmanager
def fake_cri() -> Iterator[Place]:
    """A server that runs until the block ends."""
    with tempfile.TemporaryDirectory(prefix=f"{MINE}-") as directory:
        here = Place(Path(directory))
        ready, loop = threading.Event(), asyncio.new_event_loop()
        over = asyncio.Event()

        async def serve() -> None:
            server = Server([here.fake])
            await server.start(path=str(here.socket))
            ready.set()
            await over.wait()
            server.close()
            await server.wait_closed()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        assert ready.wait(WAIT_S)
        try:
            yield here
        finally:
            loop.call_soon_threadsafe(over.set)
            thread.join(WAIT_S)
            loop.close()


def refuse(status: Status, text: str) -> Answer:
    def answer(_: Any) -> Message:
        raise GRPCError(status, text)

    return answer
