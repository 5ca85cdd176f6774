"""Takes the values of environment variables, and the output of commands, out of what is written down.

Keys stay, values are replaced by what a mask makes of them. Everything that the core knows is covered, wherever the
value hides: in a request, in the JSON text of a record, in a spec, in the configuration of an image, and in the
annotation in which kubectl keeps a whole pod as it was applied. Credentials never enter the core; meeting some here is
a bug.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import orjson

from crio_core import effects as fx
from crio_core import events as ev
from crio_core import replies as rp
from crio_core import requests as rq
from crio_core.cri import AuthConfig, ContainerConfig, ImageSpec, KeyValue, PodSandboxConfig
from crio_core.errors import LocalError
from crio_core.lifecycle.session import Session
from crio_core.oci.cdi import ContainerEdits
from crio_core.oci.facts import SpecDefaults
from crio_core.records import ContainerRecord, ImageRecord, SandboxRecord, decode, encode

Mask = Callable[[str], str]
APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
"""The annotation with a pod's whole manifest, its variables among it (Kubernetes, well-known annotations)."""
MASK_BYTES = 8
LONG_CHARS = 1024
"""Values of up to this length all get a mask of one length; of longer ones it matters how long they are."""


def keyed_mask(key: bytes) -> Mask:
    """Equal values get equal masks, so that decisions which compare them come out the same; nothing leads back.

    What makes a value unusable stays visible: a NUL, and a length over all bounds.

    Args:
        key: Chance, forgotten with the recording: without it, not even a guess can be tested.
    """

    def mask(value: str) -> str:
        digest = blake2b(value.encode("utf-8", "surrogatepass"), key=key, digest_size=MASK_BYTES).hexdigest()
        text = f"redacted-{digest}"
        if len(value) > LONG_CHARS:
            text = text.ljust(len(value.encode("utf-8", "surrogatepass")), "x")
        return text + "\0" if "\0" in value else text

    return mask


def no_value(value: str) -> str:
    """The mask for comparing: nothing is left of any value."""
    return ""


def redacted(value: object, mask: Mask) -> object:
    """The value without secrets of its own; what it contains is looked at when its turn comes.

    Raises:
        LocalError: Credentials have come where they must never be.
    """
    hide = _HIDERS.get(type(value))
    return value if hide is None else hide(value, mask)


def _pair(entry: Any, mask: Mask) -> Any:
    """`NAME=value`; an entry without a value has nothing to hide."""
    if not isinstance(entry, str):
        return None
    name, equals, value = entry.partition("=")
    return name + equals + mask(value) if equals else entry


def _process(process: Any, mask: Mask) -> Any:
    if isinstance(process, dict) and isinstance(process.get("env"), list):
        process["env"] = [_pair(entry, mask) for entry in process["env"]]
    return process


def _process_text(text: str, mask: Mask) -> str:
    return orjson.dumps(_process(orjson.loads(text), mask)).decode() if text else text


def _spec_bytes(data: bytes, mask: Mask) -> bytes:
    spec = orjson.loads(data)
    if isinstance(spec, dict):
        _process(spec.get("process"), mask)
    return orjson.dumps(_without_applied(spec, mask))


def _without_applied(values: Any, mask: Mask) -> Any:
    """JSON values with the manifest masked, in whatever map it is."""
    if isinstance(values, dict):
        return {
            key: mask(one) if key == APPLIED and isinstance(one, str) else _without_applied(one, mask)
            for key, one in values.items()
        }
    return [_without_applied(one, mask) for one in values] if isinstance(values, list) else values


def _noted(annotations: Mapping[str, str], mask: Mask) -> Mapping[str, str]:
    if APPLIED not in annotations:
        return annotations
    return {**annotations, APPLIED: mask(annotations[APPLIED])}


def _annotated(value: Any, mask: Mask) -> object:
    """Something that has annotations, and nothing else to hide."""
    return replace(value, annotations=_noted(value.annotations, mask))


def _request_text(text: str, mask: Mask) -> str:
    request = orjson.loads(text) if text else {}
    for pair in request.get("envs") or ():
        pair["value"] = mask(pair["value"])
    return orjson.dumps(_without_applied(request, mask)).decode() if text else text


def _config_text(text: str, mask: Mask) -> str:
    """An image configuration. Its history and its second, historical `container_config` repeat variables in prose."""
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    if isinstance(document, dict):
        document.pop("history", None)
        document.pop("container_config", None)
        inner = document.get("config")
        if isinstance(inner, dict) and isinstance(inner.get("Env"), list):
            inner["Env"] = [_pair(entry, mask) for entry in inner["Env"]]
    return orjson.dumps(document).decode()


def _container(record: ContainerRecord, mask: Mask) -> ContainerRecord:
    request, process = _request_text(record.request, mask), _process_text(record.process, mask)
    return replace(record, annotations=_noted(record.annotations, mask), request=request, process=process)


def _sandbox(record: SandboxRecord, mask: Mask) -> SandboxRecord:
    annotations = _noted(record.annotations, mask)
    return replace(record, annotations=annotations, request=_request_text(record.request, mask))


def _image(record: ImageRecord, mask: Mask) -> ImageRecord:
    return replace(record, config=_config_text(record.config, mask))


def _journal(event: ev.JournalLoaded, mask: Mask) -> ev.JournalLoaded:
    """Rows are redacted one by one; one that cannot be read is named, with its reason, as the node would name it."""
    rows, quarantined = [], dict(event.quarantined)
    for kind, record_id, data in event.rows:
        try:
            record = decode(kind, data)
        except LocalError as error:
            quarantined[f"{kind}/{record_id}"] = str(error)
            continue
        clean = redacted(record, mask)
        assert isinstance(clean, type(record))
        rows.append((kind, record_id, encode(clean)))
    return replace(event, rows=tuple(rows), quarantined=quarantined)


def _credentials(value: AuthConfig, mask: Mask) -> object:
    raise LocalError("credentials have come into what the core is told")


def _call(event: ev.CallArrived, mask: Mask) -> ev.CallArrived:
    """Whoever has the token of an offer may use it: chance that becomes one is a secret."""
    return replace(event, new_id=mask(event.new_id)) if isinstance(event.request, rq.Offerable) else event


def _token(value: Any, mask: Mask) -> object:
    return replace(value, token=mask(value.token)) if value.token else value


_HIDERS: Mapping[type, Callable[[Any, Mask], object]] = {
    AuthConfig: _credentials,
    KeyValue: lambda value, mask: replace(value, value=mask(value.value)),
    SpecDefaults: lambda value, mask: replace(
        value, default_env=tuple(_pair(entry, mask) for entry in value.default_env)
    ),
    ContainerEdits: lambda value, mask: replace(value, env=tuple(_pair(entry, mask) for entry in value.env)),
    ImageSpec: _annotated,
    PodSandboxConfig: _annotated,
    ContainerConfig: _annotated,
    fx.AttachNetwork: _annotated,
    SandboxRecord: _sandbox,
    ContainerRecord: _container,
    ImageRecord: _image,
    ev.JournalLoaded: _journal,
    ev.CallArrived: _call,
    rq.OpenStream: _token,
    rp.Offered: _token,
    Session: _token,
    ev.ImageResolved: lambda value, mask: replace(value, config=_config_text(value.config, mask)),
    ev.ExecFinished: lambda value, mask: replace(value, stdout=b"", stderr=b""),
    rp.Executed: lambda value, mask: replace(value, stdout=b"", stderr=b""),
    fx.CreateContainer: lambda value, mask: replace(value, spec=_spec_bytes(value.spec, mask)),
    fx.ExecInContainer: lambda value, mask: replace(value, process=_spec_process(value.process, mask)),
    fx.ServeExec: lambda value, mask: replace(value, process=_spec_process(value.process, mask)),
}


def _spec_process(data: bytes, mask: Mask) -> bytes:
    return orjson.dumps(_process(orjson.loads(data), mask))
