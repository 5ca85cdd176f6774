"""Many pods at once, and one that hangs for ever: memory stays, nothing is left, nobody waits for another."""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import Crio, Site
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

PODS = 30
AT_ONCE = 10
GROWTH_MAX = 0.10
_libc = ctypes.CDLL(None, use_errno=True)


def churn(crio: Crio, count: int, name: str) -> None:
    """Make, fill, stop and remove pods, all at once."""

    def run(requests: list[grpc.Future]) -> list[object]:
        return [request.result() for request in requests]

    client = crio.client
    configs = [crio.pod_config(f"{name}-{number}") for number in range(count)]
    pods = run([client.begin(pb.RunPodSandboxRequest(config=config)) for config in configs])
    ids = [pod.pod_sandbox_id for pod in pods if isinstance(pod, pb.RunPodSandboxResponse)]
    main = crio.container_config(["sleep", "600"])
    made = run([client.begin(pb.CreateContainerRequest(pod_sandbox_id=one, config=main)) for one in ids])
    containers = [one.container_id for one in made if isinstance(one, pb.CreateContainerResponse)]
    run([client.begin(pb.StartContainerRequest(container_id=one)) for one in containers])
    run([client.begin(pb.StopContainerRequest(container_id=one)) for one in containers])
    run([client.begin(pb.StopPodSandboxRequest(pod_sandbox_id=one)) for one in ids])
    run([client.begin(pb.RemovePodSandboxRequest(pod_sandbox_id=one)) for one in ids])


def test_thirty_pods_ten_at_a_time_leave_nothing_and_the_memory_is_flat(own_crio: Crio) -> None:
    """R26, R42: what the first ten pods cost is the server's size; the next twenty cost nothing more."""
    sizes = []
    for number in range(PODS // AT_ONCE):
        churn(own_crio, AT_ONCE, f"round{number}")
        own_crio.assert_clean()
        sizes.append(own_crio.rss_bytes())
    assert sizes[-1] <= sizes[0] * (1 + GROWTH_MAX), sizes


def watched(site: Site, monkeypatch: pytest.MonkeyPatch, report: Path) -> Crio:
    """A server whose event loop is watched."""
    monkeypatch.setenv("CRIO_TEST_BLOCKED", str(report))
    return Crio(site, launcher=("-m", "tests.integration.watched_server"))


def test_no_blocking_call_runs_on_the_event_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2, R33: while pods come and go the loop never sleeps in the kernel, except for events."""
    report = site.directory / "blocked"
    with watched(site, monkeypatch, report) as crio:
        crio.pull(crio.images.busybox)
        report.unlink(missing_ok=True)  # Of the start, when there is nobody yet to wait.
        churn(crio, 5, "watched")
        with crio.pod() as pod:
            container = crio.begin(pod, ["sleep", "600"])
            crio.exec(container, "true")
            crio.client(pb.ReopenContainerLogRequest(container_id=container))
            crio.client(pb.ImageFsInfoRequest())
            crio.client(pb.StatusRequest(verbose=True))
        crio.pull(crio.images.told)
        crio.client(pb.RemoveImageRequest(image=pb.ImageSpec(image=crio.images.told)))
        assert not report.exists(), report.read_text()


def test_guard_sees_a_main_thread_that_blocks(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that reports nothing proves something only if it can report."""
    report = site.directory / "blocked"
    monkeypatch.setenv("CRIO_TEST_BLOCK_ONCE", "1")
    with watched(site, monkeypatch, report):
        assert "_block_once" in report.read_text()


@contextmanager
def hanging_directory(path: Path) -> Iterator[Path]:
    """A mount whose file system never answers, as of a file server that is gone."""
    path.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    try:
        if _libc.mount(b"criotest", os.fsencode(path), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mounting fuse")
        yield path
    finally:
        os.close(device)  # From here on everybody who waits gets an error.
        _libc.umount2(os.fsencode(path), 2)


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


def test_create_that_hangs_on_a_dead_mount_holds_up_nobody_else(own_crio: Crio) -> None:
    """R2, R21, R33: other pods live on at full speed, the stuck one is still cancelled and removed in the end."""
    crio = own_crio
    stuck = crio.run_pod(crio.pod_config("stuck"))
    with hanging_directory(crio.site.directory / "dead") as dead:
        mount = pb.Mount(container_path="/data", host_path=str(dead / "volume"))
        configs = [crio.container_config(["true"], f"stuck{number}", mounts=[mount]) for number in range(3)]
        requests = [pb.CreateContainerRequest(pod_sandbox_id=stuck, config=config) for config in configs]
        hanging = [crio.client.begin(request, timeout_s=60) for request in requests]
        wait_for("a thread in the dead mount", lambda: waits_for_fuse(crio.pid) or any_waits_for_fuse(crio))
        asked_s = []
        with crio.pod() as other:
            container = crio.begin(other, ["sleep", "600"])
            for _ in range(50):
                begun_s = time.monotonic()
                crio.client(pb.ListContainersRequest())
                crio.client(pb.PodSandboxStatusRequest(pod_sandbox_id=stuck))
                asked_s.append(time.monotonic() - begun_s)
            assert crio.exec(container, "echo", "lively").stdout == b"lively\n"
            crio.stop(container)
        assert not any(future.done() for future in hanging)
        # Generous, as the machine may be busy: what waited for the stuck mount would wait for ever.
        assert percentile(asked_s, 0.9) < 1
        for future in hanging:
            future.cancel()
        assert crio.client(pb.StatusRequest()).status.conditions
    crio.remove(stuck)


def waits_for_fuse(pid: int) -> bool:
    """Whether a thread of a process waits for an answer of a FUSE file system."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            if "fuse" in (task / "stack").read_text() or "request_wait" in (task / "wchan").read_text():
                return True
        except OSError:
            continue  # Ended meanwhile.
    return False


def any_waits_for_fuse(crio: Crio) -> bool:
    """Whether a process that belongs to the server's site does."""
    pids = [int(line.split()[1].rstrip(":")) for line in crio.left() if line.startswith("process ")]
    return any(Path(f"/proc/{pid}").exists() and waits_for_fuse(pid) for pid in pids)


HASTE = """
import crio_io.engine, crio_server.main, crio_server.serve
crio_server.serve.STOP_S /= 5
crio_io.engine.DRAIN_S /= 5
crio_server.serve.END_S /= 5
crio_server.main.main()
"""
"""A server that waits less for what hangs, and in the same order."""


def test_end_of_the_server_is_not_held_up_by_a_stuck_create(site: Site) -> None:
    """R21: a restart is what a person tries first when something hangs; SIGTERM has to end the server."""
    with Crio(site, launcher=("-c", HASTE)) as crio:
        crio.pull(crio.images.busybox)
        pod = crio.run_pod()
        with hanging_directory(site.directory / "dead") as dead:
            mount = pb.Mount(container_path="/data", host_path=str(dead / "volume"))
            config = crio.container_config(["true"], mounts=[mount])
            future = crio.client.begin(pb.CreateContainerRequest(pod_sandbox_id=pod, config=config))
            wait_for("the dead mount", lambda: waits_for_fuse(crio.pid) or any_waits_for_fuse(crio))
            assert crio.end(timeout_s=25) == 0
            future.cancel()
        crio.start()
        crio.remove(pod)
