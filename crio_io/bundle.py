"""A container's bundle directory and the place of its log."""

import os
from pathlib import Path

from crio_core.errors import Code, OperationError
from crio_io.storage.files import delete_tree


def write_bundle(bundle: Path, spec: bytes, log_path: str) -> None:
    """Write `config.json`, and make the directory of the log file.

    Raises:
        OperationError: BUNDLE_FAILED.
    """
    try:
        bundle.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(bundle / "config.json", flags, 0o600), "wb") as file:
            file.write(spec)
        if log_path:
            Path(log_path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise OperationError(Code.INTERNAL, "BUNDLE_FAILED", f"writing bundle {bundle}: {error}") from error


def remove_bundle(bundle: Path) -> None:
    """Remove a bundle whose root filesystem is unmounted; absent is success.

    Raises:
        OperationError: BUNDLE_FAILED.
    """
    try:
        delete_tree(bundle)
    except OSError as error:
        raise OperationError(Code.INTERNAL, "BUNDLE_FAILED", f"removing bundle {bundle}: {error}") from error
