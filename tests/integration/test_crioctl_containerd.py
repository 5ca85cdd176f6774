"""crioctl against a foreign CRI server: what works here works with any CRI v1 endpoint, as nothing in it is ours."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from tests.integration.containerd_fixture import TOOLS, WAIT_S, Place, containerd
from tests.integration.waiting import wait_for

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="containerd and runc need root"),
    pytest.mark.skipif(any(shutil.which(tool) is None for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"),
]


@pytest.fixture(scope="module")
def place(spared: set[str]) -> Iterator[Place]:
    """The server."""
    with containerd(spared) as here:
        yield here


@pytest.fixture(scope="module")
def pulled(place: Place) -> str:
    """The image, pulled through crioctl."""
    place.ok("image", "pull", place.image)
    return place.image


@pytest.fixture
def running(place: Place, pulled: str) -> Iterator[tuple[str, str]]:
    """A pod and a running container in it, made by the seed's commands."""
    pod = place.ok("pod", "run", "--config", str(place.pod_file("podsandbox1")))
    container = place.ok("ctr", "create", "--pod", pod[:8], "--config", str(place.container_file("worker")))
    assert place.ok("ctr", "start", "--id", container) == container
    yield pod, container
    place.run("rm", "-f", container)
    place.run("rmp", "-f", pod)
    shutil.rmtree(place.directory / "logs", ignore_errors=True)  # CRI leaves logs to their owner


def test_pull_shows_progress_and_the_image_is_listed_everywhere(place: Place) -> None:
    """The first command of every story: progress on stderr, the reference on stdout, and the image in each view."""
    result = place.run("image", "pull", place.image)
    assert result.code == 0
    assert f"Pulling {place.image}" in result.err
    assert result.out.startswith("Image is up to date for sha256:")
    status = place.ok("image", "status", "--id", place.image)
    identifier = status.splitlines()[0].removeprefix("ID: ")
    assert f"Tag: {place.image}" in status
    assert place.data("images")["images"][0]["id"] == identifier
    assert identifier in place.ok("image", "list", "--quiet").splitlines()
    short = identifier.removeprefix("sha256:")[:10]
    assert place.data("inspecti", short)["status"]["id"] == identifier
    assert re.search(rf"criotest/busybox +1 +{short}", place.ok("images"))


def test_the_seeds_sequence_on_a_foreign_server(place: Place, pulled: str) -> None:
    """The stand-alone story word for word: each command works and prints just the id where a script captures it."""
    pod = place.ok("pod", "run", "--config", str(place.pod_file("seed")))
    assert re.fullmatch(r"[0-9a-f]{64}", pod)
    status = place.ok("pod", "status", "--id", pod)
    assert "Status: SANDBOX_READY" in status
    assert re.search(r"^IP Address: 10\.213\.77\.\d+$", status, re.MULTILINE)
    container = place.ok("ctr", "create", "--pod", pod, "--config", str(place.container_file("seed-ctr")))
    assert "Status: CONTAINER_CREATED" in place.ok("ctr", "status", "--id", container)
    assert place.ok("ctr", "start", "--id", container) == container
    assert "Status: CONTAINER_RUNNING" in place.ok("ctr", "status", "--id", container)
    assert f"ID: {container}" in place.ok("ctr", "list").splitlines()
    assert f"ID: {pod}" in place.ok("pod", "list").splitlines()
    assert place.ok("ctr", "stop", "--id", container) == container
    stopped = place.ok("ctr", "status", "--id", container)
    assert "Status: CONTAINER_EXITED" in stopped and "Exit Code: 7" in stopped
    assert place.ok("ctr", "remove", "--id", container) == container
    assert place.ok("pod", "stop", "--id", pod) == pod
    assert "Status: SANDBOX_NOTREADY" in place.ok("pod", "status", "--id", pod)
    assert place.ok("pod", "remove", "--id", pod) == pod
    assert place.run("pod", "status", "--id", pod).code == 1


def test_lists_filter_and_print_each_form(place: Place, running: tuple[str, str]) -> None:
    """Scripts narrow lists by name, label, state, pod and image, and read ids, JSON and YAML."""
    pod, container = running
    for chosen in (
        ("--name", "^work"),
        ("--label", "tier=backend"),
        ("--state", "Running"),
        ("--pod", pod[:6]),
        ("--image", place.image),
        ("--latest",),
        ("--all",),
        ("--id", container[:7]),
    ):
        assert place.ok("ps", "-q", *chosen).splitlines() == [container], chosen
    assert place.ok("ps", "-q", "--state", "exited") == ""
    assert place.ok("ps", "-q", "--label", "tier=frontend") == ""
    assert place.ok("pods", "-q", "--label", "group=podsandbox1", "--state", "ready") == pod
    assert place.data("ps")["containers"][0]["podSandboxId"] == pod
    assert yaml.safe_load(place.ok("pods", "-o", "yaml"))["items"][0]["metadata"]["namespace"] == "criotest"
    header, row = place.ok("ps").splitlines()
    assert header.startswith("CONTAINER  ") and row.startswith(f"{container[:13]}  ")
    assert "podsandbox1" in row and "Running" in row
    assert container in place.ok("ps", "--no-trunc")


def test_inspect_prints_what_crictl_prints(place: Place, running: tuple[str, str]) -> None:
    """Programs made for crictl read status and info from JSON, with RFC 3339 times and camelCase names."""
    pod, container = running
    inspected = json.loads(place.ok("inspect", container[:10]))
    assert inspected["status"]["state"] == "CONTAINER_RUNNING"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", inspected["status"]["startedAt"])
    assert inspected["status"]["finishedAt"] == "0001-01-01T00:00:00Z"
    assert inspected["status"]["logPath"].endswith("worker.log")
    assert inspected["info"]["pid"] > 1
    assert json.loads(place.ok("inspectp", pod[:10]))["status"]["network"]["ip"].startswith("10.213.77.")
    both = json.loads(place.ok("inspectp", pod, pod[:12]))
    assert [one["status"]["id"] for one in both] == [pod, pod]


def test_execsync_gives_output_and_exit_code(place: Place, running: tuple[str, str]) -> None:
    """A script sees the command's own streams and exit code; the command's options are not taken for ours."""
    _, container = running
    result = place.run("exec", "-s", container[:9], "sh", "-c", "echo out; echo err >&2; exit 42")
    assert (result.code, result.out, result.err) == (42, "out\n", "err\n")
    result = place.run("ctr", "execsync", "--id", container, "echo", "-n", "--help")
    assert (result.code, result.out) == (0, "--help")
    missing = place.run("exec", "-s", container, "/no/such")
    assert missing.code == 1 and "/no/such" in missing.err


def test_logs_show_streams_tail_time_and_follow_to_the_end(place: Place, running: tuple[str, str]) -> None:
    """The log file that a foreign monitor writes is read whole, by its end, and until the container ends."""
    _, container = running
    command = place.command("ctr", "logs", "--follow", "--id", container)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as follower:
        try:
            wait_for("the container writes", lambda: "tick 5\n" in place.run("logs", container).out, timeout_s=WAIT_S)
            result = place.run("logs", container)
            assert result.out.startswith("started\ntick 1\n") and result.err == "warned\n"
            assert re.match(
                r"\d{4}-\d\d-\d\dT[0-9:.]+(Z|[+-]\d\d:\d\d) started\n", place.ok("logs", "--timestamps", container)
            )
            assert place.ok("logs", "--since", "1h", container).startswith("started")
            assert place.ok("logs", "--since", "2999-01-01T00:00:00Z", container) == ""
            place.ok("stop", "-t", "5", container)
            out, err = follower.communicate(timeout=WAIT_S)
            assert follower.returncode == 0
            assert out.startswith("started\ntick 1\n") and out.endswith("bye\n") and err == "warned\n"
            assert place.ok("logs", "--tail", "2", container).splitlines() == out.splitlines()[-2:]
        finally:
            follower.kill()


def test_tree_shows_pods_containers_monitors_and_processes(place: Place, running: tuple[str, str]) -> None:
    """The picture from the seed, on a server that does not name its monitors: they are found as parents."""
    pod, container = running
    picture = place.ok("tree", pod[:8])
    assert re.search(rf"─pod podsandbox1 \(criotest\) {pod[:13]} ready 10\.213\.77\.", picture)
    assert re.search(rf"─container worker {container[:13]} running\n.*└─\d+ \S*containerd-shim", picture)
    assert re.search(r"└─\d+ /bin/sh -c", picture)
    tree = place.data("tree")
    worker = next(one for one in tree["children"][0]["children"] if one.get("name") == "worker")
    monitor = worker["children"][0]
    assert monitor["kind"] == "monitor" and monitor["children"][0]["kind"] == "process"
    assert json.loads(place.ok("inspect", container))["info"]["pid"] == monitor["children"][0]["pid"]


def test_version_info_and_stats_answer(place: Place, running: tuple[str, str]) -> None:
    """What one looks at first on an unknown node."""
    _, container = running
    assert "RuntimeName:  containerd" in place.ok("runtimeversion")
    assert place.data("version")["runtimeApiVersion"] == "v1"
    readable = place.ok("info")
    assert "RuntimeReady: yes" in readable and "NetworkReady: yes" in readable
    assert place.data("info")["config"]["restrictOOMScoreAdj"] is True
    row = place.ok("stats").splitlines()[1].split()
    assert row[:2] == [container[:13], "worker"] and float(row[2]) >= 0
    assert place.data("stats", container[:9])["stats"][0]["attributes"]["id"] == container


def test_refusals_of_the_server_exit_1_and_spare_the_other_ids(place: Place, running: tuple[str, str]) -> None:
    """Among several ids, one that cannot be served is named, and the others are served."""
    _, container = running
    result = place.run("stop", "-t", "5", "feedfeedfeed", container[:12])
    assert result.code == 1
    assert result.out.strip() == container
    assert "feedfeedfeed" in result.err and "not found" in result.err
    missing = place.run("pull", place.image.replace(":1", ":none"))
    assert missing.code == 1 and "PullImage: " in missing.err
