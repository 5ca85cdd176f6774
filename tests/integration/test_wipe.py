"""`crio wipe` on real nodes."""

import signal
import subprocess

import pytest

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.versions import decide
from tests.integration import residue
from tests.integration.harness import REPOSITORY, Crio, Site

pytestmark = pytest.mark.integration


def _wipe(crio: Crio, *argv: str, flags: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    argv = (*crio.argv, *flags, "wipe", *argv)
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=REPOSITORY, check=False)


def test_wipe_removes_pods_after_a_reboot_and_everything_by_force(site: Site) -> None:
    """As CRI-O has it: the file below the run directory tells of a reboot; networks are given back by their plugins."""
    crio = Crio(site)
    with crio:
        crio.pull(crio.images.busybox)
        crio.note_baseline()
        pod_id = crio.run_pod()
        crio.begin(pod_id, ["sleep", "1000"])
        refused = _wipe(crio, "--force")
        assert refused.returncode == 1
        assert "stop it first" in refused.stderr
        assert [pod.id for pod in crio.client(pb.ListPodSandboxRequest()).items] == [pod_id]
        crio.end(signal.SIGKILL)

        same = _wipe(crio)
        assert (same.returncode, same.stderr) == (0, "")
        assert "the version is the same" in same.stdout
        version_file = site.marks.runroot / "version"
        version_file.unlink()  # What a reboot does.
        internal = _wipe(crio)
        assert internal.returncode == 0
        assert "internal_wipe is on" in internal.stdout
        done = _wipe(crio, flags=("--internal-wipe=false",))
        assert done.returncode == 0, done.stderr
        assert f"removed pod default/pod0 {pod_id}" in done.stdout
        assert "removed image" not in done.stdout
        assert not [one for one in residue.find(site.marks) if "address" in one or "mount" in one or "sleep" in one]

        crio.start()
        assert crio.client(pb.ListPodSandboxRequest()).items == []
        assert len(crio.client(pb.ListImagesRequest()).images) == 1
        crio.run_pod()
        crio.end()
        done = _wipe(crio, "-f")
        assert done.returncode == 0, done.stderr
        assert "removed image" in done.stdout
        assert residue.journal_rows(site.marks) == []
        again = _wipe(crio, "-f")
        assert again.returncode == 0, "nothing to do is success"
        crio.start()


@pytest.mark.parametrize(
    ("volatile", "persistent", "pods", "images"),
    [
        ('"0.1.0"', '"0.1.0"', False, False),
        ('"0.1.7"', '"0.1.7"', False, False),  # A patch keeps everything.
        ("", '"0.1.0"', True, False),  # A reboot.
        ("", "", True, True),
        ("", '"0.2.0"', True, True),
        ('"0.2.0"', '"0.2.0"', True, True),  # An upgrade without a reboot.
        ("garbage", '"0.1.0"', True, False),
    ],
)
def test_the_version_files_decide_what_is_wiped(volatile: str, persistent: str, pods: bool, images: bool) -> None:
    """CRI-O's rules: containers after a reboot or an upgrade, images after an upgrade, and only with the containers."""
    decision = decide(volatile, persistent, "0.1.0")
    assert (decision.pods, decision.images) == (pods, images)
