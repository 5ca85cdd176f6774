"""Root filesystems of hostile images, and specs that a real runc runs. Each test owns a row of the known holes."""

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from crio_core.cri import (
    Capability,
    ContainerConfig,
    ContainerMetadata,
    KeyValue,
    LinuxContainerConfig,
    LinuxContainerResources,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    Mount,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
)
from crio_core.errors import OperationError
from crio_core.oci.capabilities import from_mask
from crio_core.oci.facts import CgroupMode, HostFacts
from crio_core.oci.plan import ContainerPlan
from crio_core.oci.spec import container_spec, exec_process
from crio_io.rootfs import gather, prepare
from tests.integration.leftovers import MINE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="runs containers and makes device nodes, which needs root"),
]

BUSYBOX = Path("/bin/busybox")
RUN_SECONDS_MAX = 60


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs an async function to its end, on each backend."""

    def call(function: Callable[..., Any], *arguments: object) -> Any:
        return anyio.run(function, *arguments, backend=request.param)

    return call


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A small image with an /etc, beside a directory that stands for the host."""
    root = tmp_path / "rootfs"
    (root / "etc").mkdir(parents=True)
    (root / "etc/passwd").write_bytes(b"root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_bytes(b"root:x:0:\n")
    (tmp_path / "host").mkdir()
    (tmp_path / "host/passwd").write_bytes(b"host:x:0:0::/:\n")
    return root


def host_listing(rootfs: Path) -> list[tuple[str, int]]:
    """Everything outside the root, with modes, to compare before and after."""
    return sorted((str(path), path.lstat().st_mode) for path in (rootfs.parent / "host").rglob("*"))


def test_gather_of_a_plain_image_reads_both_files(run: Callable[..., Any], rootfs: Path) -> None:
    """The ordinary case."""
    facts = gather(rootfs)
    assert facts.passwd.startswith(b"root:") and facts.group == b"root:x:0:\n"


def test_gather_of_an_image_without_etc_is_empty(run: Callable[..., Any], tmp_path: Path) -> None:
    """Images from scratch have no users, and must still run."""
    facts = gather(tmp_path)
    assert (facts.passwd, facts.group) == (b"", b"")


@pytest.mark.parametrize("kind", ["sparse", "fifo", "device", "directory", "fifo_link", "loop"])
def test_gather_of_a_hostile_passwd_is_refused_quickly_cve_2025_4437(
    run: Callable[..., Any], rootfs: Path, kind: str
) -> None:
    """CVE-2025-4437, CVE-2026-47262, CVE-2024-9676: huge, waiting and acting files neither fill memory nor hang."""
    passwd = rootfs / "etc/passwd"
    passwd.unlink()
    if kind == "sparse":
        with passwd.open("wb") as file:
            file.truncate(2 * 1024**3)
    elif kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "device":
        os.mknod(passwd, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    elif kind == "directory":
        passwd.mkdir()
    elif kind == "fifo_link":
        os.mkfifo(rootfs / "etc/pipe")
        passwd.symlink_to("pipe")
    else:
        passwd.symlink_to("passwd")
    with pytest.raises(OperationError) as refusal:
        gather(rootfs)
    assert refusal.value.reason == "IMAGE_FILE_REFUSED"


@pytest.mark.parametrize("target", ["/host/passwd", "../../host/passwd", "../../../../../../../../host/passwd"])
def test_gather_through_a_link_upwards_stays_inside(run: Callable[..., Any], rootfs: Path, target: str) -> None:
    """A link of the image means a place in the image, never on the host."""
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").symlink_to(target)
    assert gather(rootfs).passwd == b""


def test_prepare_makes_what_is_missing_and_again_changes_nothing(run: Callable[..., Any], rootfs: Path) -> None:
    """Idempotent, and not at the mercy of the umask."""

    async def work() -> None:
        prepare(rootfs, directories=["/srv/app/data"], files=["/srv/app/file"])

    before = os.umask(0o077)
    try:
        run(work)
        (rootfs / "srv/app/file").write_text("kept")
        run(work)
    finally:
        os.umask(before)
    assert stat.S_IMODE((rootfs / "srv/app/data").stat().st_mode) == 0o755
    assert (rootfs / "srv/app/file").read_text() == "kept"
    assert os.readlink(rootfs / "etc/mtab") == "/proc/mounts"


@pytest.mark.parametrize("name", ["passwd", "group"])
@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFCHR])
def test_gather_through_a_link_to_a_fifo_or_device_is_refused_cve_2024_9676(rootfs: Path, name: str, kind: int) -> None:
    """CVE-2024-9676: a link at /etc/passwd or /etc/group to a FIFO of the host held up who looked for users."""
    for place in (rootfs.parent / "host/waiting", rootfs / "waiting"):
        os.mknod(place, kind | 0o666, os.makedev(1, 5) if kind == stat.S_IFCHR else 0)
    (rootfs / "etc" / name).unlink()
    (rootfs / "etc" / name).symlink_to(rootfs.parent / "host/waiting")
    facts = gather(rootfs)
    assert (facts.passwd if name == "passwd" else facts.group) == b"", "the host's is not there, seen from inside"
    (rootfs / "etc" / name).unlink()
    (rootfs / "etc" / name).symlink_to("/waiting")
    with pytest.raises(OperationError) as caught:
        gather(rootfs)
    assert caught.value.reason == "IMAGE_FILE_REFUSED"


def test_prepare_of_mounts_and_workdir_through_links_changes_no_host_directory_cve_2024_9341(rootfs: Path) -> None:
    """CVE-2024-9341: /etc/crypto-policies, or a part of WORKDIR, is a link to the host, also by way of another link."""
    host = rootfs.parent / "host"
    (rootfs / "etc/crypto-policies").symlink_to(host)
    (rootfs / "step").symlink_to("etc")
    (rootfs / "srv").symlink_to("step/crypto-policies")
    before = host_listing(rootfs)
    prepare(rootfs, directories=["/srv/a/b", "/etc/crypto-policies/back-ends"], files=["/srv/config"])
    assert host_listing(rootfs) == before
    inside = rootfs / str(host).lstrip("/")
    assert sorted(path.name for path in inside.iterdir()) == ["a", "back-ends", "config"]


@pytest.mark.parametrize("target", ["host", "/host", "../host", "../../../../../../host"])
def test_prepare_through_links_changes_nothing_outside_cve_2026_55686(
    run: Callable[..., Any], rootfs: Path, target: str
) -> None:
    """CVE-2026-55686, CVE-2024-9341, CVE-2022-23648: directories are made inside, or not at all."""
    absolute = str(rootfs.parent / "host")
    (rootfs / "linked").symlink_to(target)
    (rootfs / "absolute").symlink_to(absolute)
    before = host_listing(rootfs)

    async def work() -> None:
        prepare(rootfs, directories=["/linked/a/b", "/absolute/c"], files=["/linked/f"])

    run(work)
    assert host_listing(rootfs) == before
    assert (rootfs / "host/a/b").is_dir() and (rootfs / "host/f").is_file()
    assert (rootfs / absolute.lstrip("/") / "c").is_dir()


@pytest.mark.parametrize("target", ["/host", "../host", "etc-of-image"])
def test_prepare_with_a_linked_etc_makes_no_mtab_outside_cve_2024_5154(
    run: Callable[..., Any], rootfs: Path, target: str
) -> None:
    """CVE-2024-5154: /etc as a link, relative or absolute, redirects the mtab link into the image only."""
    shutil.rmtree(rootfs / "etc")
    (rootfs / "etc").symlink_to(str(rootfs.parent / "host") if target == "/host" else target)
    before = host_listing(rootfs)
    prepare(rootfs)
    assert host_listing(rootfs) == before


@pytest.mark.parametrize("place", ["/proc/self/fd/7", "/proc", "/proc/sys/kernel", "/sys/fs", "../proc/self", "step"])
def test_prepare_of_a_directory_that_links_into_proc_is_refused_cve_2024_21626(
    run: Callable[..., Any], rootfs: Path, place: str
) -> None:
    """CVE-2024-21626, CVE-2019-19921, CVE-2023-28642: also while the link dangles, as /proc is yet to be mounted."""
    (rootfs / "data").symlink_to(place)
    (rootfs / "step").symlink_to("/proc/1")
    for directories, targets in ((["/data"], []), (["/data/deeper"], []), ([], ["/data"])):
        with pytest.raises(OperationError) as refusal:
            prepare(rootfs, directories=directories, targets=targets)
        assert refusal.value.reason == "PATH_REFUSED"
    assert not (rootfs / "proc").exists() and not (rootfs / "sys").exists()


@pytest.mark.parametrize("name", ["dev", "proc", "sys"])
def test_prepare_of_an_image_whose_dev_is_a_link_is_refused_cve_2026_41579(
    run: Callable[..., Any], rootfs: Path, name: str
) -> None:
    """CVE-2026-41579, CVE-2019-19921: the kernel's file systems are mounted on directories, never through links."""
    (rootfs / name).symlink_to(rootfs.parent / "host")
    with pytest.raises(OperationError) as refusal:
        prepare(rootfs)
    assert refusal.value.reason == "PATH_REFUSED"


def test_prepare_through_endless_links_is_an_error(run: Callable[..., Any], rootfs: Path) -> None:
    """Bounded: links that feed each other end in an error, not in a loop."""
    (rootfs / "a").symlink_to("b/x")
    (rootfs / "b").symlink_to("a/x")
    with pytest.raises(OperationError) as refusal:
        prepare(rootfs, directories=["/a"])
    assert refusal.value.reason == "ROOTFS_FAILED"


# --- what runc makes of the specs ---------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A bundle with a busybox image; whatever container it became is deleted."""
    if shutil.which("runc") is None or not BUSYBOX.exists():
        pytest.skip("runc and a static busybox are not installed")
    root = tmp_path / "bundle/rootfs"
    for name in ("bin", "etc", "dev", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in (
        "sh",
        "cat",
        "id",
        "ls",
        "mknod",
        "pwd",
        "env",
        "mount",
        "grep",
        "head",
        "sleep",
        "unshare",
        "touch",
    ):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_bytes(b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n")
    (root / "etc/group").write_bytes(b"root:x:0:\napp:x:1001:\nextra:x:2002:app\n")
    os.chmod(tmp_path, 0o755)
    yield tmp_path / "bundle"
    subprocess.run(["runc", "--root", str(tmp_path / "state"), "delete", "--force", name_of(tmp_path)], check=False)
    for directory in Path("/sys/fs/cgroup").glob(f"*{parent_of(tmp_path)}"):
        directory.rmdir()


def name_of(path: Path) -> str:
    return f"{MINE}-spec-{path.name}"


def parent_of(path: Path) -> str:
    return f"/{name_of(path)}-pod"


def bounding() -> tuple[str, ...]:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapBnd"))
    return from_mask(int(line.split()[1], 16))


def plan_for(bundle: Path, *command: str, **context: Any) -> ContainerPlan:
    """A pod on the node's network, IPC and name, so that no namespace has to be pinned for the test."""
    options = NamespaceOption(network=NamespaceMode.NODE, ipc=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER)
    unified = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    score = int(Path("/proc/self/oom_score_adj").read_text())
    return ContainerPlan(
        container_id=name_of(bundle.parent),
        sandbox_id="criotest-sandbox",
        sandbox=PodSandboxConfig(
            metadata=PodSandboxMetadata(name="pod", namespace="default", uid="u"),
            linux=LinuxPodSandboxConfig(cgroup_parent=parent_of(bundle.parent)),
        ),
        config=ContainerConfig(
            metadata=ContainerMetadata(name="c"),
            command=command,
            linux=LinuxContainerConfig(
                resources=LinuxContainerResources(memory_limit_in_bytes=64 * 1024**2, cpu_shares=128),
                security_context=LinuxContainerSecurityContext(namespace_options=options, **context),
            ),
        ),
        rootfs_path=str(bundle / "rootfs"),
        host=HostFacts(
            architecture=os.uname().machine,
            cgroup_mode=CgroupMode.V2 if unified else CgroupMode.V1,
            controllers=frozenset({"cpu", "memory", "devices", "pids"}),
            swap_limits=False,
            capabilities=bounding(),
            oom_score_adj_min=score,
        ),
    )


def runc(bundle: Path, plan: ContainerPlan) -> subprocess.CompletedProcess[str]:
    """Run a plan's container to its end."""
    facts = gather(bundle / "rootfs")
    (bundle / "config.json").write_text(json.dumps(container_spec(replace(plan, rootfs=facts))))
    command = ["runc", "--root", str(bundle.parent / "state"), "run", "--bundle", str(bundle), plan.container_id]
    return subprocess.run(command, capture_output=True, text=True, timeout=RUN_SECONDS_MAX, stdin=subprocess.DEVNULL)


def test_runc_runs_a_built_spec(bundle: Path) -> None:
    """The whole point: runc takes the spec, and the process finds what it asked for."""
    plan = plan_for(bundle, "/bin/sh", "-c", 'echo "$GREETING $HOME"; pwd; id; mount', run_as_username="app")
    config = replace(plan.config, working_dir="/tmp", envs=(KeyValue(key="GREETING", value="hello"),))
    done = runc(bundle, replace(plan, config=config))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["hello /home/app", "/tmp"]
    assert lines[2] == "uid=1000(app) gid=1001(app) groups=1001(app),2002(extra)"
    mounted = {line.split()[2]: line for line in lines[3:]}
    assert mounted["/dev"].startswith("tmpfs") and mounted["/sys"].split()[5].startswith("(ro")
    assert "/sys/firmware" in mounted or not Path("/sys/firmware").exists()


def test_runc_run_has_no_inheritable_or_ambient_capabilities_cve_2022_27652(bundle: Path) -> None:
    """CVE-2022-27652, GHSA-c9cp-9c75-9v8c, CVE-2018-1000400: looked up in the process itself, as root and not."""
    for user in (0, 1000):
        done = runc(bundle, plan_for(bundle, "/bin/cat", "/proc/1/status", run_as_user=user))
        assert done.returncode == 0, done.stderr
        status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
        assert int(status["CapInh"], 16) == 0 and int(status["CapAmb"], 16) == 0
        assert status["Seccomp"].strip() == "2"
        assert int(status["CapEff"], 16) == (0 if user else int(status["CapBnd"], 16))


def test_runc_run_with_an_ambient_capability_gives_it_to_a_user(bundle: Path) -> None:
    """The one case in which inheritable and ambient are not empty: exactly what was asked."""
    asked = Capability(drop_capabilities=("ALL",), add_ambient_capabilities=("NET_BIND_SERVICE",))
    plan = plan_for(bundle, "/bin/cat", "/proc/1/status", run_as_user=1000, capabilities=asked)
    done = runc(bundle, plan)
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb", "CapBnd")} == {1 << 10}


def test_runc_run_can_neither_unshare_nor_make_disks_nor_write_cgroups_cve_2023_25809(bundle: Path) -> None:
    """CVE-2023-25809, GHSA-g54h-m393-cpwq: no user namespace, no node for a disk, a read-only /sys/fs/cgroup."""
    script = (
        "unshare -U /bin/busybox true && echo unshared; mknod /tmp/disk b 8 0 && echo made;"
        "touch /sys/fs/cgroup/x /sys/fs/cgroup/*/x 2>/dev/null && echo written; echo end"
    )
    done = runc(bundle, plan_for(bundle, "/bin/sh", "-c", script))
    assert (done.returncode, done.stdout) == (0, "end\n"), done.stderr


def test_runc_run_with_mknod_still_cannot_open_the_hosts_disk_ghsa_g54h(bundle: Path) -> None:
    """With CAP_MKNOD a node can be made, and the devices cgroup keeps it shut."""
    script = "mknod /tmp/d b 7 0 && head -c 1 /tmp/d && echo opened; cat /dev/zero | head -c 1 >/dev/null && echo ok"
    done = runc(bundle, plan_for(bundle, "/bin/sh", "-c", script, capabilities=Capability(add_capabilities=("MKNOD",))))
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr
    assert "not permitted" in done.stderr


def test_runc_runs_a_privileged_spec(bundle: Path) -> None:
    """All capabilities of the node, and no filter: what privileged means."""
    done = runc(bundle, plan_for(bundle, "/bin/cat", "/proc/1/status", privileged=True))
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    assert from_mask(int(status["CapEff"], 16)) == bounding()
    assert status["Seccomp"].strip() == "0" and int(status["CapInh"], 16) == 0


def test_runc_mounts_what_was_asked(bundle: Path, tmp_path: Path) -> None:
    """A read-only volume cannot be written to, and one at /dev/shm takes the place of the default."""
    (tmp_path / "volume").mkdir()
    plan = plan_for(bundle, "/bin/sh", "-c", "touch /data/x || echo ro; touch /dev/shm/y && echo rw")
    mounts = (
        Mount(container_path="/data", host_path=str(tmp_path / "volume"), readonly=True),
        Mount(container_path="/dev/shm", host_path=str(tmp_path / "volume")),
    )
    done = runc(bundle, replace(plan, config=replace(plan.config, mounts=mounts)))
    assert (done.returncode, done.stdout) == (0, "ro\nrw\n"), done.stderr
    assert (tmp_path / "volume/y").exists()


def test_runc_exec_has_no_more_than_its_container_cve_2022_29162(bundle: Path, tmp_path: Path) -> None:
    """CVE-2022-29162, CVE-2025-27612: the exec's sets equal those of the first process, with none inheritable."""
    plan = plan_for(bundle, "/bin/sleep", "60", run_as_user=0)
    spec = container_spec(replace(plan, rootfs=gather(bundle / "rootfs")))
    (bundle / "config.json").write_text(json.dumps(spec))
    (tmp_path / "exec.json").write_text(json.dumps(exec_process(spec["process"], ["/bin/cat", "/proc/self/status"])))
    base = ["runc", "--root", str(tmp_path / "state")]
    with (tmp_path / "log").open("wb") as log:
        subprocess.run(
            [*base, "run", "--detach", "--bundle", str(bundle), plan.container_id],
            check=True,
            timeout=RUN_SECONDS_MAX,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    arguments = [*base, "exec", "--process", str(tmp_path / "exec.json"), plan.container_id]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=RUN_SECONDS_MAX)
    assert done.returncode == 0, done.stderr
    status = dict(line.split(":", 1) for line in done.stdout.splitlines() if ":" in line)
    held = {from_mask(int(status[name], 16)) for name in ("CapEff", "CapPrm", "CapBnd")}
    assert held == {tuple(spec["process"]["capabilities"]["bounding"])}
    assert int(status["CapInh"], 16) == 0 and int(status["CapAmb"], 16) == 0


def test_gather_is_quick_enough_for_every_create(rootfs: Path) -> None:
    """Printed, not asserted: a look at two small files costs far less than a container."""
    gather(rootfs)
    start = time.perf_counter()

    async def often() -> None:
        for _ in range(50):
            gather(rootfs)

    anyio.run(often)
    print(f"gather: {(time.perf_counter() - start) / 50 * 1e6:.0f} us each")
