"""Recording and explaining on a real node."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crio_core.replay import explanations, replay
from crio_server.cri.v1 import api_pb2 as pb
from tests.integration.harness import REPOSITORY, Crio, Site
from tests.integration.waiting import wait_for

pytestmark = pytest.mark.integration
SECRET = "hunter2-of-the-test"


def _run(*argv: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *argv], capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False
    )


def _replay(path: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    return _run("crio_server.main", "--config", "", "replay", str(path), *more)


def _crioctl(crio: Crio, *argv: str) -> "subprocess.CompletedProcess[str]":
    return _run("crio_server.crioctl", "-r", f"unix://{crio.site.socket}", *argv)


def _secretive(crio: Crio, pod_id: str) -> str:
    envs = [pb.KeyValue(key="PASSWORD", value=SECRET.encode())]
    container_id = crio.create(pod_id, crio.container_config(["sleep", "1000"], envs=envs))
    crio.client(pb.StartContainerRequest(container_id=container_id))
    return container_id


def test_a_recorded_server_replays_to_the_same_effects_over_kill_and_reload(site: Site) -> None:
    """F13: what a real server did can be run again elsewhere; a new segment begins with each server."""
    path = site.directory / "recording.jsonl"
    with Crio(site, "--record", str(path)) as crio:
        crio.pull(crio.images.busybox)
        pod_id = crio.run_pod()
        container_id = _secretive(crio, pod_id)
        assert crio.output(container_id, "sh", "-c", "echo $PASSWORD") == SECRET + "\n"
        crio.signal(signal.SIGHUP)
        crio.client(pb.ListContainersRequest())
        crio.end(signal.SIGKILL)  # The recording may end in the midst of a line.
        result = _replay(path)
        assert result.returncode == 0, result.stdout + result.stderr
        assert "the same effects" in result.stdout
        assert path.stat().st_mode & 0o777 == 0o600
        assert SECRET.encode() not in path.read_bytes()
        assert b"PASSWORD" in path.read_bytes()

        crio.start()  # The file before it is kept; the new one begins with the journal of a node in use.
        crio.remove(pod_id)
        crio.end()
        result = _replay(path, "-o", "json", "--explain", "")
        report = json.loads(result.stdout)
        assert result.returncode == 0, result.stderr
        assert report["differences"] == []
        assert any(one["id"] == pod_id and one["path"][-1]["to"] == "gone" for one in report["explain"])
        assert _replay(path.with_name(path.name + ".1"), "--explain", container_id[:12]).returncode == 0
    site_is_clean = Crio(site)
    with site_is_clean as crio:
        crio.remove_all()


def test_replay_at_an_event_shows_a_pod_being_made(own_crio: Crio) -> None:
    """The ring is always there: SIGUSR1 writes what can be replayed and looked at, event by event."""
    pod_id = own_crio.run_pod(name="looked-at")
    own_crio.signal(signal.SIGUSR1)
    recordings = own_crio.site.marks.root / "recordings"
    found = wait_for(
        "a recording", lambda: [path for path in recordings.glob("ring-*.jsonl") if _replay(path).returncode == 0]
    )
    last = json.loads(_replay(found[0], "-o", "json").stdout)["last"]
    lines = found[0].read_bytes().splitlines(keepends=True)
    at = [explanations(replay(lines, until=number).node, "looked-at") for number in range(1, last + 1)]
    states = [about[0]["state"] for about in at if about]
    first = next(number for number, about in enumerate(at, 1) if about)
    shown = _replay(found[0], "--at", str(first), "--explain", "default/looked-at")
    assert "state: reserved" in shown.stdout, shown.stderr
    assert list(dict.fromkeys(states))[:2] == ["reserved", "preparing"]
    assert states[-1] == "ready"
    for path in recordings.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        path.unlink()
    recordings.rmdir()
    own_crio.remove(pod_id)


def test_explain_of_a_ready_pod_shows_its_path(crio: Crio) -> None:
    """F6: the path with times and reasons, by id, by prefix, by name; in the verbose status too, for any client."""
    with crio.pod(name="explained") as pod_id:
        container_id = crio.begin(pod_id, ["sleep", "1000"], name="sleeper")
        for wanted in (pod_id, pod_id[:8], "default/explained", "explained"):
            done = _crioctl(crio, "explain", wanted)
            assert done.returncode == 0, done.stderr
            assert f"pod default/explained  {pod_id}" in done.stdout
            assert "AttachNetwork is done" in done.stdout
        about = json.loads(_crioctl(crio, "explain", "sleeper", "-o", "json").stdout)
        assert about["id"] == container_id
        assert [step["to"] for step in about["path"]] == [
            *("reserved", "rootfs", "creating", "created", "starting", "running")
        ]
        image = _crioctl(crio, "explain", crio.images.busybox)
        assert image.returncode == 0 and "ready" in image.stdout, image.stderr
        answer = crio.client(pb.ContainerStatusRequest(container_id=container_id, verbose=True))
        assert json.loads(answer.info["explain"])["state"] == "running"
    nothing = _crioctl(crio, "explain", "nothing-of-that-name")
    assert nothing.returncode == 1
    assert "not found" in nothing.stderr


def test_explain_of_a_pod_stuck_in_a_network_plugin_names_plugin_and_pid(site: Site) -> None:
    """F6: a pod that is in no list yet is explained by name, down to the program that it waits for."""
    release = site.directory / "release"
    plugin = site.write_plugin("ADD", f"while [ ! -e {release} ]; do sleep 0.05; done")
    with Crio(site, "--cni-plugin-dir", str(plugin.parent)) as crio:
        request = pb.RunPodSandboxRequest(config=crio.pod_config("stuck-pod"))
        pending = crio.client.begin(request)

        def explained() -> dict[str, object] | None:
            done = _crioctl(crio, "explain", "stuck-pod", "-o", "json")
            about = json.loads(done.stdout) if done.returncode == 0 else {}
            return about if about.get("state") == "network" and about["waitsFor"][0].get("steps") else None

        about = wait_for("an explanation of the stuck pod", explained)
        assert about is not None
        waits = about["waitsFor"][0]  # type: ignore[index]
        assert (waits["what"], waits["behind"], waits["budgetS"]) == ("AttachNetwork", 0, 10.0)
        step = next(one for one in waits["steps"] if "pid" in one)
        assert str(plugin) in step["what"]
        assert str(plugin).encode() in Path(f"/proc/{step['pid']}/cmdline").read_bytes()
        assert about["callers"] == {"create": 1}
        assert about["listed"] is False
        text = _crioctl(crio, "explain", "default/stuck-pod").stdout
        assert "AttachNetwork" in text and f"(pid {step['pid']})" in text and "in no list" in text
        release.touch()
        crio.remove(pending.result(timeout=20).pod_sandbox_id)


def test_explain_of_a_network_that_cannot_be_released_shows_what_is_owed_and_when_it_is_tried(site: Site) -> None:
    """Owed work: a failed DEL is kept; the pod says so, with the error and the time of the next try."""
    release = site.directory / "release"
    plugin = site.write_plugin("DEL", f"[ -e {release} ] || {{ echo no way >&2; exit 1; }}")
    with Crio(site, "--cni-plugin-dir", str(plugin.parent)) as crio:
        pod_id = crio.run_pod(name="owing")
        crio.client(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
        about = json.loads(_crioctl(crio, "explain", pod_id, "-o", "json").stdout)
        assert about["state"] == "stopped"
        owes = about["owes"]
        assert "network" in owes["parts"]
        assert owes["retries"] >= 1
        assert owes["message"]
        assert owes["nextRetryNs"] > 0 or about["waitsFor"]
        assert about["errors"][-1]["what"] == "DetachNetwork"
        assert "  owes: " in _crioctl(crio, "explain", "owing").stdout
        release.touch()
        crio.client(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
        wait_for("an end of it", lambda: "gone" in _crioctl(crio, "explain", pod_id).stdout)


def test_explain_after_a_creation_failed_still_says_why(site: Site) -> None:
    """A pod that could not be made is gone; why is asked afterwards."""
    network = site.network()
    network["plugins"][0]["ipam"] = {"type": "static", "addresses": [{"address": "not an address"}]}
    site.write_network(network)
    with Crio(site) as crio:
        crio.client.refusal(pb.RunPodSandboxRequest(config=crio.pod_config("unlucky")))
        done = _crioctl(crio, "explain", "unlucky", "-o", "json")
        assert done.returncode == 0, done.stderr
        about = json.loads(done.stdout)
        first = about[0] if isinstance(about, list) else about
        assert first["errors"][0]["what"] == "AttachNetwork"
        assert "address" in first["errors"][0]["message"]
        assert "AttachNetwork failed" in " ".join(step["because"] for step in first["path"])
        crio.remove_all()
