"""The images that are run and pulled, made from files of this machine."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isal import igzip

from scripts.local_registry import Layer, LocalRegistry, archive, archive_of_host, digest

LARGE_BYTES = 565 * 1024 * 1024
"""Unpacked size of the large image: that of a common application image."""
LARGE_LAYERS = 6
MANY_LAYERS = 60
MANY_LAYER_BYTES = 1024 * 1024
AT_ONCE = 10
AT_ONCE_BYTES = 12 * 1024 * 1024
SOURCES = ("/usr/lib", "/usr/share", "/usr/bin")
CATATONIT = "/usr/bin/catatonit"
BUSYBOX_NAMES = ("sh", "sleep", "true", "cat", "echo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """References of everything that a run needs."""

    pause: str
    work: str
    large: str
    layered: str
    several: tuple[str, ...]
    large_bytes: int
    """Compressed size of the large image."""


def fill(registry: LocalRegistry, *, large_bytes: int) -> Images:
    """Make and push all images.

    Args:
        registry: Where to.
        large_bytes: Unpacked size of the large image.
    """
    pause, work = fill_small(registry)
    files = _files(large_bytes + MANY_LAYERS * MANY_LAYER_BYTES + AT_ONCE * AT_ONCE_BYTES)
    large = [_layer(files, large_bytes // LARGE_LAYERS) for _ in range(LARGE_LAYERS)]
    layered = [_layer(files, MANY_LAYER_BYTES) for _ in range(MANY_LAYERS)]
    several = [_layer(files, AT_ONCE_BYTES) for _ in range(AT_ONCE)]
    return Images(
        pause=pause,
        work=work,
        large=registry.push("criobench/large", large).reference,
        layered=registry.push("criobench/layered", layered).reference,
        several=tuple(registry.push(f"criobench/one{i}", [layer]).reference for i, layer in enumerate(several)),
        large_bytes=sum(len(layer.blob) for layer in large),
    )


def fill_small(registry: LocalRegistry) -> tuple[str, str]:
    """Make and push what is run: references of the pause image and of the workload."""
    pause = _executable(archive_of_host([], {"pause": Path(CATATONIT).read_bytes()}))
    made = registry.push("criobench/pause", [_pack(pause)], config={"Entrypoint": ["/pause", "-P"]})
    work = registry.push("criobench/work", [_pack(_work_archive())], config={"Env": ["PATH=/bin"]})
    return made.reference, work.reference


def _executable(tar_bytes: bytes) -> bytes:
    """The same archive with every file executable."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(tar_bytes)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for info in old:
            if info.isreg():
                info.mode = 0o755
            new.addfile(info, old.extractfile(info) if info.isreg() else None)
    return out.getvalue()


def _work_archive() -> bytes:
    """Busybox, and as workload a static program that sleeps and ends at SIGTERM."""
    extra: dict[str, bytes | str] = {f"bin/{name}": "busybox" for name in BUSYBOX_NAMES}
    extra["bin/work"] = Path(CATATONIT).read_bytes()
    extra["etc/passwd"] = b"root:x:0:0:root:/root:/bin/sh\n"
    extra["etc/group"] = b"root:x:0:\n"
    return _executable(archive_of_host(["/bin/busybox"], extra))


def _pack(tar_bytes: bytes) -> Layer:
    return Layer(blob=igzip.compress(tar_bytes, 2), diff_id=digest(tar_bytes))


def _files(size_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Files of this machine, and when those are not enough the same ones again under other names."""
    total = 0
    for lap in range(100):
        for source in SOURCES:
            for path in sorted(Path(source).rglob("*")):
                if path.is_symlink() or not path.is_file() or path.stat().st_size > 64 * 1024 * 1024:
                    continue
                content = path.read_bytes()
                if lap:
                    content = f"{lap}".encode() + content
                total += len(content)
                yield f"lap{lap}{path}", content
        if total > size_bytes:
            return


def _layer(files: Iterator[tuple[str, bytes]], size_bytes: int) -> Layer:
    chosen: dict[str, bytes | str] = {}
    size = 0
    while size < size_bytes:
        name, content = next(files)
        chosen[name] = content
        size += len(content)
    return _pack(archive(chosen))
