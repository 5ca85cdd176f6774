"""The program that unpacking processes are forked from, so that their start does not cost an interpreter each.

It has everything imported and does nothing but fork. A request is one message on a socket (its number is the only
argument): the worker's arguments as JSON, with four descriptors: the directory, the blob, the control pipe and the pipe
for the answer. The reply is one byte with a pidfd of the new process. It ends when the socket does, after its children.
"""

import contextlib
import gc
import json
import os
import socket
import sys

from crio_io.storage.unpack_worker import preload, work

REQUEST_BYTES_MAX = 65536
DESCRIPTORS = 4


def main() -> None:
    """Run as a program."""
    preload()
    gc.freeze()
    connection = socket.socket(fileno=int(sys.argv[1]))
    while True:
        request, descriptors, _, _ = socket.recv_fds(connection, REQUEST_BYTES_MAX, DESCRIPTORS)
        if not request:
            break
        process_id = os.fork()
        if process_id == 0:
            connection.close()
            root_fd, blob_fd, control_fd, answer_fd = descriptors
            fds = {"root_fd": root_fd, "blob_fd": blob_fd, "control_fd": control_fd, "answer_fd": answer_fd}
            work({**json.loads(request), **fds})
        pidfd = os.pidfd_open(process_id)
        socket.send_fds(connection, [b"."], [pidfd])
        for fd in (pidfd, *descriptors):
            os.close(fd)
        _reap(os.WNOHANG)
    _reap(0)


def _reap(options: int) -> None:
    """Take note of ended children, all of them or those that have ended already."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, options) != (0, 0):
            continue
