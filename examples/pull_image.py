"""The files of an image, from Python, no daemon: sudo python examples/pull_image.py IMAGE DIRECTORY [MOUNTPOINT]"""

import sys
from pathlib import Path

import anyio

from crio_io import Progress, open_images


def show(progress: Progress) -> None:
    """Tell how far a layer has come."""
    print(f"{progress.digest.hex[:12]} {progress.received_bytes}/{progress.total_bytes} from {progress.host}")


async def pull(reference: str, directory: Path, mountpoint: Path | None = None) -> str:
    """Pull an image into a directory, have a look at its files, and return its id."""
    async with open_images(directory) as images:
        image = await images.pull(reference, progress=show)
        print(f"{image.reference} has {len(image.layers)} layers and runs {' '.join(image.image_config.cmd)!r}")
        if mountpoint is not None:
            await images.mount(image, mountpoint)
            try:
                print(*sorted(path.name for path in mountpoint.iterdir()))
            finally:
                await images.unmount(mountpoint)
        return f"sha256:{image.image_id}"


if __name__ == "__main__":
    print(anyio.run(pull, sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None))
