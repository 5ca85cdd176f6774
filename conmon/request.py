"""What a zygote is asked: fields with NUL between them, and descriptors. `conmon.zygote` has the protocol."""

import os
import sys

from conmon.low import SCM_RIGHTS, SOL_SOCKET

PIPES = ("sync", "start", "attach")


class Refused(Exception):
    """A request that this zygote does not carry out; the text says why."""


class Request:
    """What a `spawn` packet says.

    Args:
        cwd: The working directory of the monitor.
        pipes: The descriptors that came, by the names in `PIPES`.
        held_fds: Those to keep open until the container has ended.
        environment: For the runtime and the exit command.
        words: The command line of `crio-conmon`, without its name.
    """

    __slots__ = ("cwd", "environment", "held_fds", "pipes", "words")

    def __init__(
        self,
        cwd: str,
        pipes: dict[str, int],
        held_fds: tuple[int, ...],
        environment: dict[str, str],
        words: list[str],
    ) -> None:
        self.cwd = cwd
        self.pipes = pipes
        self.held_fds = held_fds
        self.environment = environment
        self.words = words


def parse_request(packet: bytes, fds: list[int]) -> Request:
    """Read a `spawn` packet that came with these descriptors.

    Raises:
        Refused: It is not one.
    """
    fields = packet.decode(errors="surrogateescape").split("\0")
    if fields[0] != "spawn" or len(fields) < 4 or not fields[3].isdigit():
        raise Refused("not a request that this monitor knows")
    names = fields[2].split(",") if fields[2] else []
    if len(names) != len(fds):
        raise Refused(f"{len(names)} descriptors are named, {len(fds)} came")
    if any(name not in (*PIPES, "hold") for name in names) or any(names.count(name) > 1 for name in PIPES):
        raise Refused(f"descriptors {fields[2]!r}")
    end = 4 + int(fields[3])
    if end > len(fields):
        raise Refused("the environment is cut off")
    environment = dict(entry.split("=", 1) for entry in fields[4:end] if "=" in entry)
    given = list(zip(names, fds, strict=True))
    pipes = {name: fd for name, fd in given if name != "hold"}
    return Request(fields[1], pipes, tuple(fd for name, fd in given if name == "hold"), environment, fields[end:])


def descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors of a packet's control messages, closed on exec."""
    fds: list[int] = []
    for level, kind, data in control:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(data) - len(data) % 4
            fds += [int.from_bytes(data[at : at + 4], sys.byteorder) for at in range(0, whole, 4)]
    for fd in fds:
        os.set_inheritable(fd, False)
    return fds
