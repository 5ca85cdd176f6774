"""`tree`: every pod with its containers, their monitors and their processes, as one picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from crio_server.cri.v1 import api_pb2 as pb
from crio_server.crioctl.client import Client
from crio_server.crioctl.errors import Problem, ServerRefusal
from crio_server.crioctl.processes import Table, look, thread_names
from crio_server.crioctl.text import short_id

DEPTH_MAX = 64
CALLS_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A line of the picture and what hangs below it; `data` is the same for machines."""

    text: str
    data: Mapping[str, Any]
    children: tuple["Node", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verbose:
    """What the tree needs of a verbose status."""

    pid: int
    monitor_pid: int
    address: str = ""


async def build(client: Client, only_pod: str | None) -> Node:
    """Look at the server and at this machine's processes.

    Args:
        only_pod: The id of the only pod to show.

    Raises:
        Problem: The server cannot be asked; a single pod or container that vanishes meanwhile is left out.
    """
    version = await client.call(client.runtime.Version, pb.VersionRequest())
    pods = (await client.call(client.runtime.ListPodSandbox, pb.ListPodSandboxRequest())).items
    containers = (await client.call(client.runtime.ListContainers, pb.ListContainersRequest())).containers
    shown = [pod for pod in pods if only_pod in (None, pod.id)]
    ids = {pod.id for pod in shown}
    details: dict[str, _Verbose] = {}
    failures: list[Problem] = []  # a task group would wrap them
    limiter = anyio.CapacityLimiter(CALLS_AT_ONCE)

    async def ask(identifier: str, kind: str) -> None:
        async with limiter:
            try:
                details[identifier] = await (_pod_details if kind == "pod" else _container_details)(client, identifier)
            except Problem as problem:
                if not (isinstance(problem, ServerRefusal) and problem.code == "NOT_FOUND"):
                    failures.append(problem)

    async with anyio.create_task_group() as group:
        for pod in shown:
            group.start_soon(ask, pod.id, "pod")
        for container in containers:
            if container.pod_sandbox_id in ids:
                group.start_soon(ask, container.id, "container")
    if failures:
        raise failures[0]
    table = await anyio.to_thread.run_sync(look)
    nodes = tuple(
        _pod_node(pod, [one for one in containers if one.pod_sandbox_id == pod.id], details, table)
        for pod in sorted(shown, key=lambda one: one.created_at)
        if pod.id in details
    )
    server = {"runtimeName": version.runtime_name, "runtimeVersion": version.runtime_version}
    text = f"{version.runtime_name} {version.runtime_version} unix://{client.settings.runtime_socket}"
    return Node(text=text, data=server, children=nodes)


async def _pod_details(client: Client, identifier: str) -> _Verbose:
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=identifier, verbose=True)
    reply = await client.call(client.runtime.PodSandboxStatus, request)
    return _Verbose(
        pid=_number(reply.info, "pid"), monitor_pid=_number(reply.info, "monitorPid"), address=reply.status.network.ip
    )


async def _container_details(client: Client, identifier: str) -> _Verbose:
    request = pb.ContainerStatusRequest(container_id=identifier, verbose=True)
    reply = await client.call(client.runtime.ContainerStatus, request)
    return _Verbose(pid=_number(reply.info, "pid"), monitor_pid=_number(reply.info, "monitorPid"))


def _number(info: Mapping[str, str], key: str) -> int:
    """A number of the verbose information: at the top, or in the JSON object called `info`, where runtimes keep it."""
    try:
        inner = json.loads(info.get("info", "{}"))
    except (ValueError, RecursionError):
        inner = {}
    value = inner.get(key) if isinstance(inner, dict) else None
    if value is None:
        value = info.get(key)
    try:
        return int(str(value))
    except ValueError:
        return 0


def _pod_node(
    pod: pb.PodSandbox, containers: Sequence[pb.Container], details: Mapping[str, _Verbose], table: Table
) -> Node:
    state = pb.PodSandboxState.Name(pod.state)
    address = details[pod.id].address
    words = (
        f"pod {pod.metadata.name} ({pod.metadata.namespace})",
        short_id(pod.id),
        state.removeprefix("SANDBOX_").lower(),
        address,
    )
    children = [
        _container_node(container, details[container.id], table)
        for container in sorted(containers, key=lambda one: one.created_at)
        if container.id in details
    ]
    infra = _process_nodes(details[pod.id], table)
    if infra:
        children.insert(0, Node(text="infra", data={"kind": "infra"}, children=infra))
    data = {
        "kind": "pod",
        "id": pod.id,
        "name": pod.metadata.name,
        "namespace": pod.metadata.namespace,
        "state": state,
        "ip": address,
    }
    return Node(text=" ".join(word for word in words if word), data=data, children=tuple(children))


def _container_node(container: pb.Container, detail: _Verbose, table: Table) -> Node:
    state = pb.ContainerState.Name(container.state)
    words = ("container", container.metadata.name, short_id(container.id), state.removeprefix("CONTAINER_").lower())
    data = {"kind": "container", "id": container.id, "name": container.metadata.name, "state": state}
    return Node(text=" ".join(words), data=data, children=_process_nodes(detail, table))


def _process_nodes(detail: _Verbose, table: Table) -> tuple[Node, ...]:
    """The monitor with the process that it watches; a process without a monitor stands alone."""
    processes = (_process_node(detail.pid, table, DEPTH_MAX),) if detail.pid in table.processes else ()
    monitor = table.processes.get(detail.monitor_pid or table.parent_of(detail.pid) or 0)
    if monitor is None:
        return processes
    data = {"kind": "monitor", "pid": monitor.pid, "command": monitor.command}
    return (Node(text=f"{monitor.pid} {monitor.command}", data=data, children=processes),)


def _process_node(pid: int, table: Table, depth: int) -> Node:
    process = table.processes[pid]
    children = tuple(_process_node(child, table, depth - 1) for child in table.children.get(pid, ()) if depth > 0)
    threads = thread_names(pid) if process.threads > 1 else {}
    lines = tuple(
        Node(text=f"{count}*[{{{name}}}]" if count > 1 else f"{{{name}}}", data={"kind": "threads", "count": count})
        for name, count in threads.items()
    )
    data = {"kind": "process", "pid": pid, "command": process.command}
    return Node(text=f"{pid} {process.command}", data=data, children=children + lines)


def as_lines(node: Node) -> list[str]:
    """The picture, with branches drawn."""
    lines = [node.text]
    for index, child in enumerate(node.children):
        last = index == len(node.children) - 1
        first, *below = as_lines(child)
        lines.append(("└─" if last else "├─") + first)
        lines.extend(("  " if last else "│ ") + line for line in below)
    return lines


def as_data(node: Node) -> dict[str, Any]:
    """The picture as nested objects."""
    return {**node.data, "children": [as_data(child) for child in node.children]}
