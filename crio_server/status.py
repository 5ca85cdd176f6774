"""What can be asked over HTTP on the server's socket: paths, and what they are answered.

`/info`, `/config` and `/containers/ID` have the paths and the members that CRI-O's clients know, such as cAdvisor.
`/metrics` is for Prometheus. `/images/progress` tells of pulls as they go on, one JSON object a line:

    {"image": REF, "state": "resolving" | "fetching" | "recording"}
    {"image": REF, "digest": ..., "diffId": ..., "step": ..., "receivedBytes": ..., "totalBytes": ..., ...}
    {"image": REF, "state": "ready"} or {"image": REF, "state": "failed", "because": ...}

A line is written when it says something new, at most every `LOOK_S` for each layer. Nothing is queued: a reader that is
slow gets the latest when it comes to read again.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

import orjson

from crio_core import requests as rq
from crio_core.errors import Code, OperationError
from crio_core.replies import ContainerFound, Explained, SandboxFound
from crio_core.values import dataclass
from crio_io.driver import Caller
from crio_server.errors import status_of
from crio_server.services.explanation import pulls_of

PATHS = "/info, /config, /containers/ID, /images/progress, /metrics"
LOOK_S = 0.25
JSON = "application/json"
LINES = "application/x-ndjson"
TOML = "application/toml"
_STATUSES = {Code.NOT_FOUND: 404, Code.INVALID_ARGUMENT: 400, Code.RESOURCE_EXHAUSTED: 503, Code.UNAVAILABLE: 503}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, whole or in pieces."""

    status: int = 200
    content_type: str = JSON
    body: bytes | AsyncGenerator[bytes, None] = b""


Answering = Callable[[str, Mapping[str, str]], Awaitable[Answer]]
"""Gives the answer to a path, decoded, and its query."""


def failed(status: int, message: str) -> Answer:
    """An answer that is an error."""
    return Answer(status=status, body=_json({"error": message}))


def _json(value: object) -> bytes:
    return orjson.dumps(value) + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusPages:
    """The pages of one server; call it with a path and a query.

    Args:
        driver: Runs the node.
        config: The effective configuration, TOML.
        storage_root: Where images are.
        cgroup_driver: `systemd` or `cgroupfs`.
        rootfs: Where the root filesystem of a container is, by its id.
        metrics: The content type and the text of the page for Prometheus.
    """

    driver: Caller
    config: Callable[[], str]
    storage_root: str
    cgroup_driver: str
    rootfs: Callable[[str], str]
    metrics: Callable[[], tuple[str, bytes]]

    async def __call__(self, path: str, query: Mapping[str, str]) -> Answer:
        """Answer a question; what goes wrong becomes an answer too."""
        try:
            match path.split("/")[1:]:
                case ["info"]:
                    return Answer(body=_json(self._info()))
                case ["config"]:
                    return Answer(content_type=TOML, body=self.config().encode())
                case ["containers", container_id] if container_id:
                    return Answer(body=_json(await self._container(container_id)))
                case ["metrics"]:
                    content_type, body = self.metrics()
                    return Answer(content_type=content_type, body=body)
                case ["images", "progress"]:
                    return await self._progress(query.get("image", ""))
                case _:
                    return failed(404, f"there is no {path[:200]}: {PATHS}")
        except Exception as error:
            code = error.code if isinstance(error, OperationError) else Code.INTERNAL
            return failed(_STATUSES.get(code, 500), status_of(error)[1])

    async def metrics_alone(self, path: str, query: Mapping[str, str]) -> Answer:
        """Answer who may know how the server does, and nothing of what it runs."""
        return await self(path, query) if path == "/metrics" else failed(404, f"there is no {path[:200]}: /metrics")

    def _info(self) -> Mapping[str, Any]:
        whole = [{"container_id": 0, "host_id": 0, "size": 2**32 - 1}]
        return {
            "storage_driver": "overlay",
            "storage_image": "",
            "storage_root": self.storage_root,
            "cgroup_driver": self.cgroup_driver,
            "default_id_mappings": {"uids": whole, "gids": whole},
        }

    async def _container(self, container_id: str) -> Mapping[str, Any]:
        found = await self.driver.call(rq.ContainerStatus(container_id=container_id))
        assert isinstance(found, ContainerFound)
        record = found.container
        pod = await self.driver.call(rq.PodSandboxStatus(sandbox_id=record.sandbox_id))
        assert isinstance(pod, SandboxFound)
        return {
            "name": record.metadata.name,
            "pid": record.pid,
            "image": record.image,
            "image_ref": record.image_ref,
            "created_time": record.created_at_ns,
            "labels": dict(record.labels),
            "annotations": dict(record.annotations),
            "crio_annotations": {},
            "log_path": record.log_path,
            "root": self.rootfs(record.id),
            "sandbox": record.sandbox_id,
            "ip_addresses": list(pod.sandbox.ips),
        }

    async def _progress(self, reference: str) -> Answer:
        if reference and not await pulls_of(self.driver, reference):
            return failed(404, f"no pull of {reference[:200]!r} is under way")
        return Answer(content_type=LINES, body=progress_lines(self.driver, reference))


async def progress_lines(driver: Caller, reference: str = "") -> AsyncGenerator[bytes, None]:
    """Lines about pulls: of one reference until its last pull is over, or of all for ever."""
    told: dict[tuple[str, str], Mapping[str, Any]] = {}
    while True:
        pulls = await pulls_of(driver, reference)
        news: dict[tuple[str, str], Mapping[str, Any]] = {}
        for pull in pulls:
            news[(pull["name"], "")] = {"image": pull["name"], "state": pull["state"]}
            news.update({(pull["name"], one["digest"]): {"image": pull["name"], **one} for one in pull["layers"]})
        lines = [_json(line) for key, line in news.items() if told.get(key) != line]
        lines += [
            _json(await _ended(driver, image)) for image, digest in told if not digest and (image, "") not in news
        ]
        told = news
        if lines:
            yield b"".join(lines)
        if reference and not pulls:
            return
        await asyncio.sleep(LOOK_S)


async def _ended(driver: Caller, image: str) -> Mapping[str, Any]:
    """How the latest pull of an image ended."""
    answer = await driver.call(rq.Explain(kind="node"))
    assert isinstance(answer, Explained)
    departed: Any = answer.about["departed"]
    paths = (one["path"] for one in departed if one["kind"] == "pull" and one["name"] == image and one["path"])
    path: Any = next(paths, None)
    because = path[-1]["because"] if path else "nobody remembers"
    if because == "SaveRecord is done":
        return {"image": image, "state": "ready"}
    return {"image": image, "state": "failed", "because": because}
