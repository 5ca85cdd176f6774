"""Containers under a monitor, for the suite that every conmon-compatible monitor has to pass.

A `Rig` makes bundles from busybox in a temporary folder, has a monitor create containers with runc, and takes
everything away again. Monitors: Debian's `conmon`, our `crio-conmon` started alone, and ours forked by a zygote.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import IO

import anyio

from crio_io.zygote import ZygoteClient, default_command
from tests.integration.leftovers import MINE
from tests.integration.waiting import look_until

RUNC = "/usr/sbin/runc"
BUSYBOX = "/bin/busybox"
DEADLINE_S = 20.0
APPLETS = ("sh", "sleep", "cat", "seq", "stty", "tail", "printf", "yes", "head", "dd", "echo", "true", "test")
MONITORS = ("debian", "alone", "zygote")
HASTE = "import conmon.clients, conmon.loop\nconmon.loop.QUIET_S = 0.2\nconmon.clients.STALL_NS //= 5\n"
"""Monitors rest sooner, and lose patience with a client sooner: tests look at what they do then."""
NO_PIPES: Mapping[str, int] = MappingProxyType({})


def until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait for a condition; fail with `what` at the deadline."""
    assert look_until(bool, condition, deadline_s), f"after {deadline_s:g} s: {what}"


def missing_parts() -> str:
    """What this machine lacks for these tests, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    missing = [path for path in (RUNC, BUSYBOX, "/usr/bin/conmon") if not os.path.exists(path)]
    return f"{', '.join(missing)} not installed" if missing else ""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


@dataclass(kw_only=True)
class Case:
    """One container and what its monitor said."""

    rig: "Rig"
    cid: str
    folder: Path
    messages: list[dict[str, object]] = field(default_factory=list)
    sync_fd: int = -1
    monitor_pid: int = 0
    program: "subprocess.Popen[bytes] | None" = None

    def started(self) -> str:
        """Wait until the program has left its monitor behind, or refused; what it said."""
        assert self.program is not None
        _, said = self.program.communicate(timeout=DEADLINE_S)
        pidfile = self.folder / "conmon.pid"
        self.monitor_pid = int(pidfile.read_text()) if pidfile.exists() else 0
        return (said or b"").decode()

    @property
    def pid(self) -> int:
        return int((self.folder / "pidfile").read_text())

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def read_sync(self) -> dict[str, object]:
        """The next message of the monitor; an empty one when it closed the pipe."""
        line = b""
        while not line.endswith(b"\n"):
            byte = os.read(self.sync_fd, 1)
            if not byte:
                return {}
            line += byte
        message: dict[str, object] = json.loads(line)
        self.messages.append(message)
        return message

    def start(self) -> "Case":
        self.rig.runc("start", self.cid)
        return self

    def exit_code(self) -> int:
        """Wait for the exit file."""
        path = self.folder / "exits" / self.cid
        until(path.exists, f"no exit file of {self.cid}")
        return int(path.read_text())

    def gone(self) -> None:
        """Wait until the monitor itself has ended."""
        until(lambda: not self.watched(), f"monitor {self.monitor_pid} of {self.cid} lives on")

    def watched(self) -> bool:
        """Whether the monitor lives; a process that got its number later is another one."""
        try:
            words = Path(f"/proc/{self.monitor_pid}/cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return alive(self.monitor_pid) and self.cid.encode() in b" ".join(words).split(b" ")

    def records(self, *paths: Path) -> list[tuple[str, str, bytes]]:
        """Stream, tag and bytes of each record in the log; every line has to be a record."""
        found = []
        for path in paths or (self.log,):
            for line in path.read_bytes().split(b"\n")[:-1]:
                stamp, stream, tag, data = line.split(b" ", 3)
                assert len(stamp) == len("2026-01-02T03:04:05.123456789+00:00"), line
                found.append((stream.decode(), tag.decode(), data))
            assert path.read_bytes()[-1:] in (b"", b"\n"), "the last record is cut off"
        return found

    def output(self, stream: str = "stdout", *paths: Path) -> bytes:
        """What the container wrote, joined again."""
        parts = [data + (b"\n" if tag == "F" else b"") for name, tag, data in self.records(*paths) if name == stream]
        return b"".join(parts)

    def control(self, line: str) -> None:
        fd = os.open(self.folder / "ctl", os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, line.encode())
        os.close(fd)

    def attach(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.settimeout(DEADLINE_S)
        folder_fd = os.open(self.folder, os.O_PATH)
        try:
            client.connect(f"/proc/self/fd/{folder_fd}/attach")
        finally:
            os.close(folder_fd)
        return client


def hasty_zygote(folder: Path) -> ZygoteClient:
    """The way to a zygote that many tests share, whose monitors do soon what they do when nothing happens."""
    *program, code = default_command()
    return ZygoteClient(folder / "zygote.sock", command=(*program, code.replace("os._exit(", f"{HASTE}os._exit(")))


class Rig:
    """Makes cases with one kind of monitor and cleans up after them.

    Args:
        kind: One of `MONITORS`.
        folder: Everything lies below.
        shared: Folder of a zygote that is not the rig's own, and lives on.
    """

    def __init__(self, kind: str, folder: Path, shared: Path | None = None) -> None:
        self.kind = kind
        self.folder = folder
        self.cases: list[Case] = []
        self.environment = {"PATH": os.environ["PATH"]}  # of monitors, for their runtime and exit command
        self.stdout: IO[bytes] | None = None  # of monitors that are started alone
        self._count = 0
        self._owns_zygote = kind == "zygote" and shared is None
        self.client = hasty_zygote(shared) if shared else ZygoteClient(folder / "zygote.sock")
        self.zygote_pid = anyio.run(self.client.ensure) if kind == "zygote" else 0
        rootfs = folder / "rootfs"
        for name in ("bin", "proc", "dev", "sys", "tmp"):
            (rootfs / name).mkdir(parents=True)
        shutil.copy(BUSYBOX, rootfs / "bin/busybox")
        for name in APPLETS:
            (rootfs / "bin" / name).symlink_to("busybox")

    def runc(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            [RUNC, "--root", str(self.folder / "runc"), *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def _bundle(self, command: Sequence[str], *, terminal: bool, memory_bytes: int) -> Case:
        self._count += 1
        cid = f"{MINE}-{self._count}-{self.kind}"
        bundle = self.folder / cid
        (bundle / "exits").mkdir(parents=True)
        (bundle / "persist").mkdir()
        self.runc("spec", "-b", str(bundle))
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(args=list(command), terminal=terminal)
        config["process"].pop("rlimits")
        config["root"] = {"path": str(self.folder / "rootfs"), "readonly": False}
        config["linux"]["namespaces"] = [ns for ns in config["linux"]["namespaces"] if ns["type"] != "network"]
        config["linux"]["cgroupsPath"] = f"/{cid}"
        if memory_bytes:
            config["linux"]["resources"]["memory"] = {"limit": memory_bytes, "swap": memory_bytes}
        (bundle / "config.json").write_text(json.dumps(config))
        case = Case(rig=self, cid=cid, folder=bundle)
        self.cases.append(case)
        return case

    def create(
        self,
        *command: str,
        terminal: bool = False,
        stdin: bool = False,
        memory_bytes: int = 0,
        options: Sequence[str] = (),
        runtime: str = RUNC,
        pipes: Mapping[str, int] = NO_PIPES,
        read: bool = True,
        full_attach: bool = True,
    ) -> Case:
        """Have the monitor create a container; its first message has been read, unless `read` is false."""
        case = self._bundle(command, terminal=terminal, memory_bytes=memory_bytes)
        bundle = str(case.folder)
        arguments = ["--api-version", "1", "-c", case.cid, "-u", case.cid, "-n", case.cid, "-r", runtime]
        arguments += ["-b", bundle, "-p", f"{bundle}/pidfile", *(["--full-attach"] if full_attach else [])]
        arguments += ["--exit-dir", f"{bundle}/exits", "--persist-dir", f"{bundle}/persist"]
        if not any(option in ("-l", "--log-path") for option in options):
            arguments += ["-l", f"k8s-file:{bundle}/log"]
        arguments += ["-t"] if terminal else []
        arguments += ["-i"] if stdin else []
        self.launch(case, [*arguments, *options], pipes)
        if read:
            case.read_sync()
        return case

    def exec(
        self,
        case: Case,
        *command: str,
        api_version: int = 1,
        terminal: bool = False,
        options: Sequence[str] = (),
        pipes: Mapping[str, int] = NO_PIPES,
    ) -> Case:
        """Have another monitor run a command in a container; nothing has been read from it."""
        name = f"exec-{len(self.cases)}"
        folder = case.folder / name
        folder.mkdir()
        spec = json.loads((case.folder / "config.json").read_text())["process"]
        spec.update(args=list(command), terminal=terminal)
        (folder / "process.json").write_text(json.dumps(spec))
        job = Case(rig=self, cid=case.cid, folder=folder)
        self.cases.append(job)
        arguments = ["-c", case.cid, "-n", case.cid, "-r", RUNC, "-p", f"{folder}/pidfile", "-e"]
        arguments += ["--exec-process-spec", f"{folder}/process.json", "-l", f"k8s-file:{folder}/log"]
        arguments += ["--api-version", "-u", name, "-b", str(folder), "--full-attach"] if api_version else []
        arguments += ["-t"] if terminal else []
        self.launch(job, [*arguments, *options], pipes)
        return job

    async def spawn(self, case: Case, arguments: Sequence[str], pipes: Mapping[str, int] = NO_PIPES) -> None:
        """Have the zygote start the monitor, with its sync pipe."""
        case.sync_fd, writer = os.pipe()
        try:
            process = await self.client.spawn(
                [*self._common(case), *arguments],
                cwd=case.folder,
                environment=self.environment,
                pipes={"sync": writer, **pipes},
            )
        finally:
            os.close(writer)
        os.close(process.pidfd)
        case.monitor_pid = process.pid

    def _common(self, case: Case) -> list[str]:
        return ["--runtime-arg", f"--root={self.folder}/runc", "-P", str(case.folder / "conmon.pid")]

    def launch(self, case: Case, arguments: Sequence[str], pipes: Mapping[str, int] = NO_PIPES) -> None:
        """Start the monitor with its sync pipe, and with `start` and `attach` where they are given.

        One with a start pipe is not waited for: the caller has to let it go on.
        """
        if self.kind == "zygote":
            anyio.run(self.spawn, case, arguments, pipes)
            return
        case.sync_fd, writer = os.pipe()
        environment = dict(self.environment)
        for name, fd in {"sync": writer, **pipes}.items():
            environment[f"_OCI_{name.upper()}PIPE"] = str(fd)
        program = ["/usr/bin/conmon"] if self.kind == "debian" else list(default_command())
        case.program = subprocess.Popen(
            [*program, *self._common(case), *arguments],
            env=environment,
            pass_fds=(writer, *pipes.values()),
            cwd=case.folder,
            stdout=self.stdout,
            stderr=self.stdout or subprocess.PIPE,
        )
        os.close(writer)
        if "start" not in pipes and "--sync" not in arguments:
            case.started()

    def close(self) -> None:
        """Take away every container and monitor that this rig started."""
        if self._owns_zygote:
            anyio.run(self.client.quit)
        for case in self.cases:
            self.runc("delete", "-f", case.cid, check=False)
            if case.sync_fd >= 0:
                os.close(case.sync_fd)
        stuck = []
        for case in self.cases:
            if case.program is not None and case.program.stderr is not None and not case.program.stderr.closed:
                case.program.communicate(timeout=DEADLINE_S)
            if case.monitor_pid and case.watched():
                try:
                    case.gone()
                except AssertionError:
                    stuck.append(case.cid)
                    os.kill(case.monitor_pid, signal.SIGKILL)
        assert stuck == [], "monitors that outlive their containers"
