"""The connection to a CRI server: one channel, deadlines on every call, and every failure as a Problem."""

import asyncio
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.cri.v1.api_grpc import ImageServiceStub, RuntimeServiceStub
from crio_server.crioctl.endpoint import Settings
from crio_server.crioctl.errors import ServerRefusal, Unreachable

CALL_DEADLINE_S = 240.0  # what a kubelet gives its longest call
PULL_DEADLINE_S = 3600.0

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

_WHY = {
    errno.ENOENT: "there is no such socket: is the server running? Name another with -r or CONTAINER_RUNTIME_ENDPOINT",
    errno.ECONNREFUSED: "nobody listens there: the server has ended; start it again",
    errno.EACCES: "permission denied: run as root, or join the group that owns the socket",
    errno.ENOTSOCK: "that is not a socket",
    errno.ENOTDIR: "a part of that path is not a directory",
}


class Client:
    """Both services of one server; `call` is the only way in."""

    def __init__(self, settings: Settings, runtime_channel: Channel, image_channel: Channel) -> None:
        self.settings = settings
        self.runtime = RuntimeServiceStub(runtime_channel)
        self.image = ImageServiceStub(image_channel)
        self.images_channel = image_channel
        """For calls of a service of our own beside the image service."""

    async def call(
        self,
        method: UnaryUnaryMethod[Request, Response],
        request: Request,
        *,
        deadline_s: float | None = CALL_DEADLINE_S,
    ) -> Response:
        """Do one call.

        Args:
            deadline_s: Seconds until the call is given up; None waits for ever.

        Raises:
            ServerRefusal: The server answered with a status other than OK, or not in time.
            Unreachable: The connection was lost.
        """
        with self._problems_of(method.name, deadline_s):
            return await method(request, timeout=deadline_s)

    async def stream(self, method: UnaryStreamMethod[Request, Response], request: Request) -> AsyncIterator[Response]:
        """Do a call whose messages come one by one, for as long as they do.

        Raises:
            ServerRefusal: The server answered with a status other than OK.
            Unreachable: The connection was lost.
        """
        with self._problems_of(method.name, None):
            async with method.open() as stream:
                await stream.send_message(request, end=True)
                async for message in stream:
                    yield message

    @contextmanager
    def _problems_of(self, path: str, deadline_s: float | None) -> Iterator[None]:
        name = path.rpartition("/")[2]
        socket = self.settings.image_socket if "ImageService" in path else self.settings.runtime_socket
        try:
            yield
        except GRPCError as error:
            text = error.message or "the server gave no reason"
            if error.status is Status.UNIMPLEMENTED:
                text += f" (the server at {socket} does not offer {name})"
            raise ServerRefusal(name, error.status.name, text) from error
        except TimeoutError as error:
            text = f"no answer within {deadline_s:g} s from {socket}"
            raise ServerRefusal(name, Status.DEADLINE_EXCEEDED.name, text) from error
        except (OSError, StreamTerminatedError, ProtocolError) as error:
            raise unreachable(socket, error, "the connection broke") from error


def unreachable(socket: str, error: BaseException, otherwise: str) -> Unreachable:
    """The message for a server that cannot be reached: the endpoint, the cause, and what to try."""
    number = error.errno if isinstance(error, OSError) else None
    why = _WHY.get(number or 0) or f"{otherwise}: {str(error) or type(error).__name__}"
    return Unreachable(f"cannot connect to unix://{socket}: {why}")


async def _open(socket: str, timeout_s: float) -> Channel:
    channel = Channel(path=socket)
    try:
        async with asyncio.timeout(timeout_s):
            await channel.__connect__()
    except TimeoutError as error:
        channel.close()
        raise Unreachable(f"cannot connect to unix://{socket}: not accepted within {timeout_s:g} s") from error
    except OSError as error:
        channel.close()
        raise unreachable(socket, error, "the system said") from error
    return channel


async def _greet(channel: Channel, settings: Settings) -> None:
    """Find out early, and within the connect timeout, that what listens there is not a CRI server or hangs."""
    version = RuntimeServiceStub(channel).Version
    socket, timeout_s = settings.runtime_socket, settings.connect_timeout_s
    try:
        await version(pb.VersionRequest(), timeout=timeout_s)
    except GRPCError as error:
        if error.status is Status.UNIMPLEMENTED and "unknown service" in (error.message or ""):
            raise Unreachable(
                f"unix://{socket} answers, but does not offer CRI v1 (runtime.v1.RuntimeService)"
            ) from error
        # Any other status is an answer; the command that follows will say what it means.
    except TimeoutError as error:
        raise Unreachable(
            f"cannot connect to unix://{socket}: it accepts, but gave no answer within {timeout_s:g} s; -t waits longer"
        ) from error
    except (OSError, StreamTerminatedError, ProtocolError) as error:
        raise unreachable(socket, error, "what listens there does not speak gRPC") from error


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Client]:
    """A client that is known to talk to a server.

    Raises:
        Unreachable: No server answers.
    """
    runtime_channel = await _open(settings.runtime_socket, settings.connect_timeout_s)
    image_channel = runtime_channel
    try:
        await _greet(runtime_channel, settings)
        if settings.image_socket != settings.runtime_socket:
            image_channel = await _open(settings.image_socket, settings.connect_timeout_s)
        yield Client(settings, runtime_channel, image_channel)
    finally:
        runtime_channel.close()
        if image_channel is not runtime_channel:
            image_channel.close()


def run(settings: Settings, work: Callable[[Client], Awaitable[Result]]) -> Result:
    """Connect, do the work, disconnect; the bridge from a command to the event loop."""

    async def body() -> Result:
        async with connect(settings) as client:
            return await work(client)

    return asyncio.run(body())
