"""Where the server is: flags, environment, /etc/crictl.yaml, then the first well-known socket that exists."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crio_server.crioctl.errors import BadInput
from crio_server.crioctl.text import parse_duration_s

DEFAULT_SOCKETS = ("/run/crio/crio.sock", "/var/run/crio.sock", "/run/containerd/containerd.sock")
DEFAULT_CLIENT_FILE = Path("/etc/crictl.yaml")
CONNECT_TIMEOUT_S = 10.0
CLIENT_FILE_BYTES_MAX = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to reach the server; paths of unix sockets."""

    runtime_socket: str
    image_socket: str
    connect_timeout_s: float
    chosen_by: str  # for error messages: what decided the runtime endpoint


def socket_path(endpoint: str, source: str) -> str:
    """The path in `unix:///run/x.sock`, `unix:/run/x.sock` or `/run/x.sock`.

    Raises:
        BadInput: The endpoint is not a unix socket.
    """
    if "://" in endpoint and not endpoint.startswith("unix://"):
        raise BadInput(f"{source}: {endpoint!r}: only unix sockets are supported, such as unix:///run/crio/crio.sock")
    path = endpoint.removeprefix("unix://").removeprefix("unix:")
    if not path:
        raise BadInput(f"{source}: {endpoint!r} names no socket; expected a form such as unix:///run/crio/crio.sock")
    return path


def settle(
    *,
    runtime_endpoint: str | None,
    image_endpoint: str | None,
    timeout: str | None,
    client_file: Path | None,
) -> Settings:
    """Decide the settings; arguments given as None fall back to the client file, then to the defaults.

    Args:
        client_file: A file in crictl's format; None reads /etc/crictl.yaml when it is there.

    Raises:
        BadInput: A value cannot be used, or a named file cannot be read.
    """
    values = read_client_file(client_file)
    origin = str(client_file or DEFAULT_CLIENT_FILE)
    if runtime_endpoint:
        runtime_socket, chosen_by = socket_path(runtime_endpoint, "--runtime-endpoint"), "--runtime-endpoint"
    elif from_file := values.get("runtime-endpoint"):
        runtime_socket, chosen_by = socket_path(from_file, origin), origin
    else:
        runtime_socket, chosen_by = first_existing(), "the well-known places"
    if image_endpoint:
        image_socket = socket_path(image_endpoint, "--image-endpoint")
    elif runtime_endpoint is None and (from_file := values.get("image-endpoint")):
        image_socket = socket_path(from_file, origin)
    else:
        image_socket = runtime_socket
    try:
        timeout_s = parse_duration_s(timeout or values.get("timeout") or str(CONNECT_TIMEOUT_S))
    except ValueError as error:
        raise BadInput(f"timeout: {error}") from error
    return Settings(
        runtime_socket=runtime_socket,
        image_socket=image_socket,
        connect_timeout_s=timeout_s or CONNECT_TIMEOUT_S,  # crictl's files use 0 for "the default"
        chosen_by=chosen_by,
    )


def first_existing() -> str:
    """The first well-known socket that exists, or the first of all when none does."""
    return next((path for path in DEFAULT_SOCKETS if Path(path).is_socket()), DEFAULT_SOCKETS[0])


def read_client_file(path: Path | None) -> Mapping[str, str]:
    """The scalar settings of a crictl.yaml; keys that have no meaning here are left to crictl.

    Raises:
        BadInput: The file was named and is not there, or is not a YAML mapping.
    """
    wanted = path or DEFAULT_CLIENT_FILE
    try:
        with wanted.open("rb") as stream:
            text = stream.read(CLIENT_FILE_BYTES_MAX + 1)
    except FileNotFoundError as error:
        if path is None:
            return {}
        raise BadInput(f"{wanted}: no such file") from error
    except OSError as error:
        raise BadInput(f"{wanted}: {error.strerror}") from error
    if len(text) > CLIENT_FILE_BYTES_MAX:
        raise BadInput(f"{wanted}: larger than {CLIENT_FILE_BYTES_MAX} bytes")
    import yaml  # only here: most machines have no such file, and the parser takes a while to load

    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise BadInput(f"{wanted}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadInput(f"{wanted}: expected keys and values such as `runtime-endpoint: unix:///run/crio/crio.sock`")
    return {str(key): str(value) for key, value in values.items() if value is not None}
