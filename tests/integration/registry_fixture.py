"""The loopback registry and the images that tests use: the ones of the demonstration."""

from scripts.local_registry import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Layer,
    LocalRegistry,
    Pushed,
    archive,
    archive_of_host,
    busybox_archive,
    digest,
    pack,
    redis_archive,
)

__all__ = [
    "OCI_CONFIG",
    "OCI_MANIFEST",
    "Layer",
    "LocalRegistry",
    "Pushed",
    "archive",
    "archive_of_host",
    "busybox_archive",
    "digest",
    "pack",
    "redis_archive",
]
