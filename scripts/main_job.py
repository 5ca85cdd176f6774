"""The main job, shown: redis in a Kubernetes pod, through the CRI, step by step; nothing of it stays.

`make run` runs this as root. Each command is printed before it is run. The last line is `main job: ok` and the exit
code 0; after Ctrl-C it is 130, and nothing stays then either.
"""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Mapping

from scripts.demo_node import POLL_S, SYSTEM_PATH, DemoFailed, DemoNode, Interrupted, Signals
from scripts.demo_residue import Found, listed, table

NEEDED = ("runc", "ip", "iptables", "redis-server", "redis-cli")
PONG_S = 15.0
REDIS_PORT = 6379
ENDING_S = 5.0
"""How long processes that were told to end may take until they are gone."""
SHORT_ID = 13
BOLD, PLAIN = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")


def main() -> int:
    """Run it; returns the exit code."""
    if os.geteuid() != 0:
        return _complain("this needs root: namespaces, mounts and cgroups")
    os.environ["PATH"] = SYSTEM_PATH  # what root has after `su` lacks the places of ip and iptables
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return _complain(f"not installed: {', '.join(missing)}; `make run` installs what is missing")
    signals = Signals()
    try:
        node = DemoNode(signals)
    except DemoFailed as error:
        return _complain(str(error))
    began_s = time.monotonic()
    code = 1
    try:
        _show(node)
        code = 0
    except Interrupted as interrupted:
        code = interrupted.exit_code
    except (DemoFailed, OSError) as error:
        print(f"\nthe server's log ends with:\n{node.log_tail()}\n\nFAILED: {error}", file=sys.stderr, flush=True)
    finally:
        signals.close()
        node.close()
    left = listed(node.residue.look())
    if left:
        return _complain("left behind:\n  " + "\n  ".join(left))
    if code == 0:
        print(f"took {time.monotonic() - began_s:.1f} s\nmain job: ok", flush=True)
    return code


def _complain(what: str) -> int:
    print(f"main job: {what}", file=sys.stderr)
    return 1


def _say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def _do(node: DemoNode, *arguments: str, capture: bool = False) -> str:
    """Show a command as a shell would, and run it."""
    print(f"{BOLD}$ {' '.join(arguments)}{PLAIN}", flush=True)
    text = node.run(arguments, capture=capture)
    if capture:
        print(text, end="", flush=True)
    return text.strip()


def _show(node: DemoNode) -> None:
    before = node.residue.look()
    try:
        _start(node)
        running = _pod_with_redis(node)
    except Exception as error:
        node.signals.close()
        print(f"\n{error}: removing what there is", file=sys.stderr, flush=True)
        node.remove_pods()
        raise
    _say("end the server and the registry; the bridge stays by design of its plugin, so it is ours to remove")
    _do(node, "ip", "link", "delete", node.bridge)
    node.stop_server()
    node.remove_shared()
    _prove(node, {"before": before, "while it ran": running})


def _start(node: DemoNode) -> None:
    here = node.directory
    print(f"# everything is below {here} and talks over sockets of its own", flush=True)
    _say("a registry on loopback, with an image of this machine's redis-server, as a mirror of docker.io")
    size_bytes = node.start_registry()
    node.write_files()
    print(f"library/redis:alpine, {size_bytes / 1e6:.1f} MB compressed", flush=True)
    _say("the server")
    print(f"{BOLD}$ crio --config {here}/crio.conf --config-dir {here}/crio.conf.d &{PLAIN}", flush=True)
    node.start_server()
    print(f"{BOLD}$ export CONTAINER_RUNTIME_ENDPOINT={node.endpoint}{PLAIN}", flush=True)
    _do(node, "crioctl", "runtimeversion")


def _pod_with_redis(node: DemoNode) -> Found:
    """The sequence, up to where everything is removed again; returns what there was in the middle of it."""
    here = node.directory
    _say("a pod")
    pod_id = _do(node, "crioctl", "pod", "run", "--config", f"{here}/sandbox_config.json", capture=True)[:SHORT_ID]
    _do(node, "crioctl", "pod", "status", "--id", pod_id)

    _say("an image")
    _do(node, "crioctl", "image", "pull", "redis:alpine")

    _say("a container in the pod")
    created = _do(
        node, "crioctl", "ctr", "create", "--pod", pod_id, "--config", f"{here}/container_redis.json", capture=True
    )
    container_id = created[:SHORT_ID]
    _do(node, "crioctl", "ctr", "start", "--id", container_id)
    _do(node, "crioctl", "ctr", "status", "--id", container_id)

    _say("pods, containers, their processes: one monitor for each container")
    _do(node, "crioctl", "tree")

    _say("redis answers at the pod's address, and from within")
    _ping(node, _address(node, pod_id))
    _do(node, "crioctl", "ctr", "execsync", "--id", container_id, "redis-cli", "ping")

    _say("what it wrote, by way of its monitor")
    _do(node, "crioctl", "ctr", "logs", "--id", container_id)
    running = node.residue.look()

    _say("and away with it")
    _do(node, "crioctl", "ctr", "stop", "--id", container_id)
    _do(node, "crioctl", "ctr", "remove", "--id", container_id)
    _do(node, "crioctl", "pod", "stop", "--id", pod_id)
    _do(node, "crioctl", "pod", "remove", "--id", pod_id)
    _do(node, "crioctl", "pod", "list")
    return running


def _address(node: DemoNode, pod_id: str) -> str:
    status = json.loads(node.run(["crioctl", "inspectp", pod_id], capture=True))
    address: str = status["status"]["network"]["ip"]
    return address


def _ping(node: DemoNode, address: str) -> None:
    """PING redis, once it listens: it needs a moment after its start."""
    deadline_s = time.monotonic() + PONG_S
    while not _listens(address):
        if time.monotonic() > deadline_s:
            raise DemoFailed(f"nothing listens at {address} port {REDIS_PORT} after {PONG_S:g} s")
        node.signals.wait(POLL_S)
    if _do(node, "redis-cli", "-h", address, "ping", capture=True) != "PONG":
        raise DemoFailed(f"no PONG from {address}")


def _listens(address: str) -> bool:
    try:
        socket.create_connection((address, REDIS_PORT), timeout=1).close()
    except OSError:
        return False
    return True


def _prove(node: DemoNode, columns: Mapping[str, Found]) -> None:
    """Compare what is there now with what was there before."""
    _say("what of this run is left on the machine; its directory goes last")
    deadline_s = time.monotonic() + ENDING_S
    while listed(now := node.residue.look()) and time.monotonic() < deadline_s:
        node.signals.wait(POLL_S)
    print(table({**columns, "now": now}), flush=True)
    if left := listed(now):
        raise DemoFailed("left behind:\n  " + "\n  ".join(left))
    shutil.rmtree(node.directory)
    print(f"{node.directory}: removed", flush=True)


if __name__ == "__main__":
    sys.exit(main())
