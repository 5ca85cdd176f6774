"""The whole main job through a client of another make: pods, containers, images, commands, from first to last."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from grpc import StatusCode

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.services.image import ImageService
from crio_server.services.runtime import RuntimeService
from tests.integration.harness import Crio, Refused, read_log
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration

EXEC_OUTPUT_BYTES_MAX = 16 * 1024 * 1024


@pytest.fixture
def pod(crio: Crio) -> Iterator[str]:
    """A ready pod."""
    with crio.pod() as pod_id:
        yield pod_id


def test_main_job_from_version_to_removal_answers_as_the_cri_says(crio: Crio) -> None:
    """What a kubelet does for one pod with one container, each answer looked at."""
    call = crio.client
    version = call(pb.VersionRequest(version="v1"))
    assert (version.runtime_api_version, bool(version.runtime_name), bool(version.runtime_version)) == (
        "v1",
        True,
        True,
    )
    config = crio.pod_config("web", labels={"app": "web"}, annotations={"note": "line 1\nline 2"})
    pod = call(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    status = call(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    assert status.state == pb.SANDBOX_READY
    assert status.metadata == config.metadata
    assert (dict(status.labels), dict(status.annotations)) == (dict(config.labels), dict(config.annotations))
    assert status.network.ip.startswith(crio.site.marks.subnet)
    assert abs(status.created_at / 1e9 - time.time()) < 60
    main = crio.container_config(["sh", "-c", "echo up; trap 'exit 3' TERM; while :; do sleep 0.05; done"])
    main.labels["tier"] = "front"
    container = call(pb.CreateContainerRequest(pod_sandbox_id=pod, config=main, sandbox_config=config)).container_id
    created = crio.status(container)
    assert (created.state, created.started_at, created.finished_at) == (pb.CONTAINER_CREATED, 0, 0)
    call(pb.StartContainerRequest(container_id=container))
    running = crio.status(container)
    assert running.state == pb.CONTAINER_RUNNING
    assert running.created_at <= running.started_at
    assert (running.metadata, running.image.image) == (main.metadata, crio.images.busybox)
    assert dict(running.labels) == {"tier": "front"}
    assert running.log_path == str(crio.site.logs / "web" / "main.log")
    assert running.image_ref
    done = crio.exec(container, "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (done.stdout, done.stderr, done.exit_code) == (b"out\n", b"err\n", 42)
    log = wait_for("the log", lambda: read_log(Path(running.log_path)))
    assert [(one.stream, one.whole, one.text) for one in log] == [("stdout", True, "up\n")]
    crio.stop(container, 10)
    exited = crio.status(container)
    assert (exited.state, exited.exit_code) == (pb.CONTAINER_EXITED, 3)
    assert exited.started_at <= exited.finished_at
    call(pb.RemoveContainerRequest(container_id=container))
    call(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    assert call(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status.state == pb.SANDBOX_NOTREADY
    call(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert call.refusal(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).code is StatusCode.NOT_FOUND


def test_status_names_conditions_handlers_and_verbose_details(crio: Crio) -> None:
    """A kubelet decides from these whether the node is ready, a person why it is not."""
    answer = crio.client(pb.StatusRequest(verbose=True))
    assert {one.type: one.status for one in answer.status.conditions} == {"RuntimeReady": True, "NetworkReady": True}
    assert "runc" in [handler.name for handler in answer.runtime_handlers]
    details = {key: json.loads(value) for key, value in answer.info.items()}
    assert details["config"]["root"] == str(crio.site.marks.root)
    assert details["node"]["owing"] == []
    assert not crio.client(pb.StatusRequest()).info
    crio.site.write_network("no network")
    try:
        conditions = {one.type: one for one in crio.client(pb.StatusRequest()).status.conditions}
        assert not conditions["NetworkReady"].status
        assert "10-test.conflist" in conditions["NetworkReady"].message
    finally:
        crio.site.write_network()
    assert all(one.status for one in crio.client(pb.StatusRequest()).status.conditions)


def test_runtime_config_tells_the_driver_and_takes_the_pod_cidr(crio: Crio) -> None:
    """The kubelet takes the cgroup driver from here since 1.28; refused the range, it would tell it for ever."""
    assert crio.client(pb.RuntimeConfigRequest()).linux.cgroup_driver == pb.CGROUPFS
    network = pb.NetworkConfig(pod_cidr="10.77.0.0/24")
    answer = crio.client(pb.UpdateRuntimeConfigRequest(runtime_config=pb.RuntimeConfig(network_config=network)))
    assert answer == pb.UpdateRuntimeConfigResponse()


def test_lists_filter_by_id_prefix_state_labels_and_pod(crio: Crio) -> None:
    """Kubelets and crictl find their own by these filters; each is tried alone and with another."""
    one, two = crio.run_pod(labels={"app": "a", "x": "1"}), crio.run_pod(labels={"app": "b", "x": "1"})
    running = crio.begin(one, ["sleep", "600"], "runs", labels={"role": "r"})
    idle = crio.create(two, crio.container_config(["sleep", "600"], "waits", labels={"role": "w"}))

    def pods(**fields: Any) -> set[str]:
        return {pod.id for pod in crio.client(pb.ListPodSandboxRequest(filter=pb.PodSandboxFilter(**fields))).items}

    def containers(**fields: Any) -> set[str]:
        request = pb.ListContainersRequest(filter=pb.ContainerFilter(**fields))
        return {found.id for found in crio.client(request).containers}

    ready = pb.PodSandboxStateValue(state=pb.SANDBOX_READY)
    assert pods() == {one, two}
    assert pods(id=one) == pods(id=one[:10]) == {one}
    assert pods(id="0123456789" * 3) == set()
    assert pods(label_selector={"app": "a"}) == {one}
    assert pods(label_selector={"x": "1"}, id=two[:12]) == {two}
    assert pods(label_selector={"app": "a", "x": "2"}) == set()
    crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=two))
    assert pods(state=ready) == {one}
    assert pods(state=pb.PodSandboxStateValue(state=pb.SANDBOX_NOTREADY)) == {two}
    assert containers() == {running, idle}
    assert (
        containers(id=running[:9]) == containers(pod_sandbox_id=one) == containers(pod_sandbox_id=one[:9]) == {running}
    )
    assert containers(state=pb.ContainerStateValue(state=pb.CONTAINER_RUNNING)) == {running}
    assert containers(state=pb.ContainerStateValue(state=pb.CONTAINER_EXITED)) == {idle}
    assert containers(label_selector={"role": "w"}) == {idle}
    assert containers(label_selector={"role": "w"}, pod_sandbox_id=one) == set()
    item = next(c for c in crio.client(pb.ListContainersRequest()).containers if c.id == running)
    assert (item.pod_sandbox_id, item.metadata.name, item.state) == (one, "runs", pb.CONTAINER_RUNNING)
    crio.remove(one, two)


def test_stop_and_remove_of_what_is_stopped_or_gone_succeed(crio: Crio) -> None:
    """The CRI asks for idempotence: a kubelet that lost an answer asks again."""
    pod = crio.run_pod()
    container = crio.begin(pod, ["sleep", "600"])
    crio.client(pb.StartContainerRequest(container_id=container))
    for _ in range(2):
        crio.stop(container)
    for _ in range(2):
        crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
    for _ in range(2):
        crio.client(pb.RemoveContainerRequest(container_id=container))
    crio.stop(container)
    for _ in range(2):
        crio.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod))


def test_remove_of_a_running_pod_kills_and_removes_all_of_it(crio: Crio) -> None:
    """CRI: containers in the sandbox must be forcibly terminated and removed."""
    pod = crio.run_pod()
    pids = [crio.info(crio.begin(pod, ["sleep", "600"], name))["pid"] for name in ("a", "b")]
    crio.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert crio.client(pb.ListContainersRequest()).containers == []


def test_methods_to_come_answer_unimplemented_and_name_themselves(crio: Crio) -> None:
    """A client must learn which method is missing, not that the connection broke."""
    for service in pb.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            if hasattr(RuntimeService, method.name) or hasattr(ImageService, method.name):
                continue
            request = getattr(pb, method.input_type.name)()
            refused = crio.client.refusal(request, timeout_s=10)
            assert refused.code is StatusCode.UNIMPLEMENTED, method.name
            assert method.name in refused.message


# --- commands -----------------------------------------------------------------------------------------------------


def test_exec_over_its_timeout_answers_deadline_exceeded_and_kills_the_command(crio: Crio, pod: str) -> None:
    """Probes rely on it: the answer comes within a second of the limit, and nothing goes on running."""
    container = crio.begin(pod, ["sleep", "600"])
    begun_s = time.monotonic()
    late = crio.client.refusal(pb.ExecSyncRequest(container_id=container, cmd=["sleep", "543"], timeout=1))
    assert late.code is StatusCode.DEADLINE_EXCEEDED
    assert 1 <= time.monotonic() - begun_s < 2
    wait_for("the command's end", lambda: "sleep 543" not in crio.output(container, "ps", "-o", "args"))


def test_exec_without_output_limit_is_capped_and_costs_bounded_memory(crio: Crio, pod: str) -> None:
    """CVE-2022-1708: a container must not fill the server's memory through its output."""
    container = crio.begin(pod, ["sleep", "600"])
    crio.exec(container, "true")
    before, most, ended = crio.rss_bytes(), 0, threading.Event()

    def measure() -> None:
        nonlocal most
        while not ended.wait(0.02):
            most = max(most, crio.rss_bytes())

    watcher = threading.Thread(target=measure)
    watcher.start()
    try:
        done = crio.exec(container, "sh", "-c", "head -c 100000000 /dev/zero; echo end >&2", timeout_s=60)
    finally:
        ended.set()
        watcher.join()
    assert len(done.stdout) <= EXEC_OUTPUT_BYTES_MAX
    assert len(done.stdout) > EXEC_OUTPUT_BYTES_MAX // 2
    assert most - before < 6 * EXEC_OUTPUT_BYTES_MAX, (most, before)
    assert crio.exec(container, "echo", "still here").stdout == b"still here\n"


def test_exec_whose_background_child_holds_the_output_answers_in_time(crio: Crio, pod: str) -> None:
    """R24, CVE-2026-53495: a probe that leaves a daemon behind must not hold the call, nor leave a zombie."""
    container = crio.begin(pod, ["sleep", "600"])
    begun_s = time.monotonic()
    command = ["sh", "-c", "echo first; sleep 600 & exit 5"]
    done = crio.client.attempt(pb.ExecSyncRequest(container_id=container, cmd=command, timeout=2))
    # runc exec itself waits for the output's end, so the limit may be what ends the call: never more than that.
    if isinstance(done, Refused):
        assert done.code is StatusCode.DEADLINE_EXCEEDED
    else:
        assert (done.stdout, done.exit_code) == (b"first\n", 5)
    assert time.monotonic() - begun_s < 3
    children = psutil.Process(crio.pid).children(recursive=True)
    assert [child for child in children if child.status() == psutil.STATUS_ZOMBIE] == []


def test_exec_in_a_stopped_container_and_of_a_missing_program_say_so(crio: Crio, pod: str) -> None:
    """Neither is an error of the server; a missing program has the code that shells give it."""
    container = crio.begin(pod, ["sleep", "600"])
    missing = crio.client.attempt(pb.ExecSyncRequest(container_id=container, cmd=["/no/such/program"], timeout=5))
    if isinstance(missing, Refused):
        assert "/no/such/program" in missing.message
    else:
        assert missing.exit_code in (126, 127, 255)
    crio.stop(container)
    refused = crio.client.refusal(pb.ExecSyncRequest(container_id=container, cmd=["true"]))
    assert refused.code is StatusCode.FAILED_PRECONDITION
    assert "exited" in refused.message


# --- logs ---------------------------------------------------------------------------------------------------------


def test_reopening_the_log_of_a_busy_container_loses_no_byte(crio: Crio, pod: str) -> None:
    """R38: a kubelet renames the file and asks for a new one while the container writes at full speed."""
    script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; echo -n tail"
    container = crio.begin(pod, ["sh", "-c", script])
    path = Path(crio.status(container).log_path)
    parts = []
    for number in range(10):
        part = path.with_suffix(f".{number}")
        wait_for(
            "more of the log, or its end",
            lambda: path.stat().st_size > 0 or crio.status(container).state == pb.CONTAINER_EXITED,
        )
        if path.stat().st_size == 0:
            break
        path.rename(part)
        parts.append(part)
        answer = crio.client.attempt(pb.ReopenContainerLogRequest(container_id=container))
        if isinstance(answer, Refused):  # It has ended meanwhile.
            assert answer.code is StatusCode.FAILED_PRECONDITION, answer
            break
        assert path.exists()
    assert len(parts) > 1, "the container was faster than one turn of its log"
    crio.ended(container)
    entries = read_log(*parts, *([path] if path.exists() else []))
    expected = "".join(f"line {number}\n" for number in range(20000)) + "tail"
    assert "".join(one.text for one in entries).removesuffix("\n") == expected


def test_both_outputs_and_long_lines_are_logged_whole(crio: Crio, pod: str) -> None:
    """R39: a long line is split into partial records that together are the line."""
    script = "yes abcdefg | head -c 100000 | { while read x; do echo -n $x; done; }; echo; echo problem >&2"
    container = crio.begin(pod, ["sh", "-c", script])
    crio.ended(container)
    entries = read_log(Path(crio.status(container).log_path))
    assert "".join(one.text for one in entries if one.stream == "stdout") == "abcdefg" * 12500 + "\n"
    assert [one.text for one in entries if one.stream == "stderr"] == ["problem\n"]


# --- images -------------------------------------------------------------------------------------------------------


def test_image_pulled_listed_described_and_removed(crio: Crio) -> None:
    """All names of an image lead to it, and removing it gives the space back."""
    call = crio.client
    reference = crio.images.told
    digest = next(iter(call(pb.ListImagesRequest()).images)).id  # of the busybox that the module has
    assert call(pb.ImageStatusRequest(image=pb.ImageSpec(image=reference))).image.id == ""
    ref = crio.pull(reference)
    image = call(pb.ImageStatusRequest(image=pb.ImageSpec(image=reference), verbose=True))
    assert reference in image.image.repo_tags
    assert image.image.repo_digests[0].partition("@")[0] == reference.rpartition(":")[0]
    assert image.image.size > 0
    assert image.image.username == "web"
    assert image.info
    for name in (ref, image.image.id, image.image.repo_digests[0], image.image.id.removeprefix("sha256:")[:16]):
        assert call(pb.ImageStatusRequest(image=pb.ImageSpec(image=name))).image.id == image.image.id, name
        filtered = call(pb.ListImagesRequest(filter=pb.ImageFilter(image=pb.ImageSpec(image=name)))).images
        assert [one.id for one in filtered] == [image.image.id]
    assert {one.id for one in call(pb.ListImagesRequest()).images} == {digest, image.image.id}
    by_digest = crio.pull(image.image.repo_digests[0])
    assert by_digest == ref
    for _ in range(2):
        call(pb.RemoveImageRequest(image=pb.ImageSpec(image=ref)))
    assert {one.id for one in call(pb.ListImagesRequest()).images} == {digest}


def test_image_of_a_running_container_stays(crio: Crio, pod: str) -> None:
    """R16: a collector that lists before and deletes after must not take what runs."""
    crio.begin(pod, ["sleep", "600"])
    refused = crio.client.refusal(pb.RemoveImageRequest(image=pb.ImageSpec(image=crio.images.busybox)))
    assert refused.code is StatusCode.FAILED_PRECONDITION
    assert crio.client(pb.ImageStatusRequest(image=pb.ImageSpec(image=crio.images.busybox))).image.id


def _written(crio: Crio, least_bytes: int) -> pb.FilesystemUsage | None:
    """What writable layers take, as soon as it is so much."""
    found: pb.FilesystemUsage = crio.client(pb.ImageFsInfoRequest()).container_filesystems[0]
    return found if found.used_bytes.value >= least_bytes else None


def test_image_fs_info_tells_what_the_store_takes(crio: Crio) -> None:
    """The kubelet's image collector works by these numbers."""
    found = crio.client(pb.ImageFsInfoRequest()).image_filesystems[0]
    assert Path(found.fs_id.mountpoint).is_relative_to(crio.site.marks.root)
    assert found.used_bytes.value > 1_000_000
    assert found.inodes_used.value > 10
    with crio.pod() as pod:
        crio.begin(pod, ["sh", "-c", "head -c 3000000 /dev/urandom > /written; sleep 600"])
        info = wait_for("the count of what was written", lambda: _written(crio, 3_000_000), timeout_s=40)
        assert info is not None
        assert info.used_bytes.value < 3_200_000
        assert 1 < info.inodes_used.value < 60
        again = crio.client(pb.ImageFsInfoRequest()).image_filesystems[0]
        assert again.used_bytes.value < found.used_bytes.value + 100_000, "images take what they took"
    assert abs(found.timestamp / 1e9 - time.time()) < 60
