"""One OCI command line runtime (runc, crun, runsc, ...): its commands as functions.

Every call is one short process: nothing is kept between calls. The runtime logs into a memory file that it inherits, so
there are no log files to clean up, and an exec's process goes the same way.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import orjson

from crio_core.errors import RemoteError
from crio_core.values import dataclass
from crio_io import mounts, spawn
from crio_io.moves import Moves
from crio_io.runtime import messages
from crio_io.runtime.execs import StreamedExec, check_exec, exec_files, memory_file, read_memory

COMMAND_S = 60.0
"""How long a command may take before it is killed: they take milliseconds, unless the kernel hangs."""
STATE_MAX_BYTES = 1024 * 1024
EXEC_OUTPUT_MAX_BYTES = 16 * 1024 * 1024
"""How much an exec may say, on both streams together; what a CRI reply can carry."""
_OF_THE_HOST = frozenset(("runc", "crun", "youki"))
EXEC_NO_LIMIT_S = 10 * 365 * 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeState:
    """A container as its runtime sees it (runtime-spec, "State"); `pid` is 0 when no process is left."""

    id: str
    status: str
    pid: int
    bundle: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """What an exec left. When it `timed_out` it has been killed, and the exit code is 137."""

    stdout: bytes
    stderr: bytes
    exit_code: int
    timed_out: bool
    truncated: bool


class OciRuntime:
    """A runtime's command line.

    Args:
        name: What configuration calls it, for messages.
        path: The program.
        root: Where it keeps its state (`--root`).
        systemd_cgroup: Whether systemd manages the cgroups.
        scratch: A directory of ours for pid files of running execs; made when needed.
        moves: Told when the runtime is about to put a process into a container's control group.
    """

    def __init__(self, name: str, path: str, root: str, *, systemd_cgroup: bool, scratch: Path, moves: Moves) -> None:
        self.name = name
        self.path = path
        self.root = root
        self.systemd_cgroup = systemd_cgroup
        self._scratch = scratch
        self.moves = moves

    @property
    def runs_on_the_host(self) -> bool:
        """Whether a container's first process is one of the host's, and not a sandbox's or virtual machine's.

        Known of the runtimes that do nothing else; of any other program it is not assumed.
        """
        return Path(self.path).name in _OF_THE_HOST

    async def start(self, container_id: str) -> None:
        """Run the process of a created container; one that runs already is success.

        Raises:
            OperationError: With the runtime's own words.
        """
        done, text = await self._call("start", container_id)
        if done.returncode != 0:
            state = await self.state(container_id)
            if state is None or state.status != "running":
                raise messages.failure(self.name, f"start {container_id}", text)

    async def kill(self, container_id: str, signal: str, *, everyone: bool = False) -> None:
        """Send a signal to the first process, or to every process; success when there is none left to get it.

        Raises:
            OperationError: With the runtime's own words.
        """
        options = ("--all",) if everyone else ()
        done, text = await self._call("kill", *options, container_id, signal)
        if done.returncode != 0 and not messages.says_dead(text) and not messages.says_absent(text):
            raise messages.failure(self.name, f"kill {container_id} {signal}", text)

    async def delete(self, container_id: str, *, force: bool = True) -> None:
        """Remove a container from the runtime, killing it first when `force`; absent is success.

        Raises:
            OperationError: With the runtime's own words.
        """
        options = ("--force",) if force else ()
        done, text = await self._call("delete", *options, container_id)
        if done.returncode != 0 and not messages.says_absent(text):
            raise messages.failure(self.name, f"delete {container_id}", text)

    async def state(self, container_id: str) -> RuntimeState | None:
        """How the runtime sees a container; None when it has none of that id.

        Raises:
            OperationError: With the runtime's own words.
            RemoteError: The runtime's answer is not a state.
        """
        done, text = await self._call("state", container_id)
        if done.returncode != 0:
            if messages.says_absent(text):
                return None
            raise messages.failure(self.name, f"state {container_id}", text)
        fields = _parsed(self.name, "state", done.stdout)
        try:
            return RuntimeState(
                id=str(fields["id"]),
                status=str(fields["status"]),
                pid=int(fields.get("pid", 0)),
                bundle=str(fields.get("bundle", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RemoteError(f"{self.name} state {container_id}: answer without {error}") from error

    async def mount_options(self) -> frozenset[str]:
        """The mount options that it says it knows (runtime-spec, "features"); none of one that does not say."""
        done, _ = await self._call("features")
        if done.returncode != 0:
            return frozenset()
        found = _parsed(self.name, "features", done.stdout)
        options = found.get("mountOptions") if isinstance(found, dict) else None
        return frozenset(one for one in options or () if isinstance(one, str))

    async def update(self, container_id: str, resources: bytes) -> None:
        """Change the limits of a container, as the runtime-spec's LinuxResources in JSON says.

        Raises:
            OperationError: With the runtime's own words.
        """
        done, text = await self._call("update", "--resources", "-", container_id, stdin=resources)
        if done.returncode != 0:
            raise messages.failure(self.name, f"update {container_id}", text)

    async def exec_sync(
        self,
        container_id: str,
        process: Mapping[str, Any] | bytes,
        *,
        timeout_s: float = 0.0,
        output_max_bytes: int = EXEC_OUTPUT_MAX_BYTES,
    ) -> ExecResult:
        """Run a process in a running container and collect its output, without a monitor.

        At the time limit everything that the exec has started is killed, and the answer comes at once even if
        something that got away still holds the output (R24).

        Args:
            container_id: Where.
            process: The OCI process, or its JSON.
            timeout_s: The time limit; 0 for none.
            output_max_bytes: How much is kept of both streams together; the rest is read and thrown away.

        Raises:
            OperationError: The process could not be started; EXECUTABLE_NOT_FOUND when it is missing.
        """
        spec = process if isinstance(process, bytes) else orjson.dumps(process)
        self.moves.expect()
        with exec_files(self._scratch, spec) as files:
            argv = self._argv(files.log_fd, "exec", *files.options, container_id)
            child = spawn.Child(argv, pass_fds=files.fds, output_max_bytes=output_max_bytes, output_shared=True)
            try:
                with anyio.move_on_after(timeout_s or EXEC_NO_LIMIT_S):
                    await child.wait_exit()
                timed_out = child.returncode is None
            finally:
                if child.returncode is None:
                    with anyio.CancelScope(shield=True):
                        await mounts.in_thread(f"kill exec in {container_id}", files.kill, child.popen.pid)
                        with anyio.move_on_after(spawn.DRAIN_S):
                            await child.wait_exit()
                if child.returncode is not None:
                    with anyio.move_on_after(spawn.DRAIN_S):
                        await child.wait_output()
                await child.end()
            log = files.log()
        returncode = child.returncode if child.returncode is not None else -9
        done = child.completed(returncode)
        if not timed_out:
            check_exec(self.name, container_id, returncode, log)
        return ExecResult(
            stdout=done.stdout,
            stderr=done.stderr,
            exit_code=137 if timed_out else returncode,
            timed_out=timed_out,
            truncated=done.truncated,
        )

    @contextmanager
    def exec_streamed(self, container_id: str, process: bytes, stdio: tuple[int, int, int]) -> Iterator[StreamedExec]:
        """Start a process in a running container whose streams are these; its user must await its `end`.

        Raises:
            OperationError: The runtime's program could not be started.
        """
        self.moves.expect()
        with exec_files(self._scratch, process) as files:
            argv = self._argv(files.log_fd, "exec", *files.options, container_id)
            with StreamedExec(self.name, container_id, argv, files, stdio) as running:
                yield running

    def global_options(self) -> tuple[str, ...]:
        """The options before any command, for whoever runs the runtime on our behalf."""
        return (f"--root={self.root}", *(("--systemd-cgroup",) if self.systemd_cgroup else ()))

    def _argv(self, log_fd: int, *arguments: str) -> Sequence[str]:
        log = ("--log", f"/proc/self/fd/{log_fd}", "--log-format", "json")
        return (self.path, *self.global_options(), *log, *arguments)

    async def _call(self, *arguments: str, stdin: bytes = b"") -> tuple[spawn.Completed, str]:
        """A command's result, and, when it failed, why."""
        with memory_file("log") as log_fd:
            done = await spawn.run(
                self._argv(log_fd, *arguments),
                stdin=stdin,
                pass_fds=(log_fd,),
                timeout_s=COMMAND_S,
                output_max_bytes=STATE_MAX_BYTES,
            )
            text = messages.readable(read_memory(log_fd), done.stderr) if done.returncode != 0 else ""
        return done, text


def _parsed(runtime: str, command: str, output: bytes) -> Any:
    try:
        return orjson.loads(output)
    except orjson.JSONDecodeError as error:
        raise RemoteError(f"{runtime} {command}: answer is not JSON: {error}") from error
