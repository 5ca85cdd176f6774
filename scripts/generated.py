"""Write the files of the tree that are made from other files; with `--check`, tell whether they are up to date.

They are committed, so that a checkout runs and reads without any tool: the stubs of the CRI, the pages of the
lifecycles, the reference of the configuration. The check writes them elsewhere and compares byte for byte.

The proto is compiled under the path `crio_server/cri/v1`, from which its compiler derives the imports that it writes.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUBS = Path("crio_server/cri/v1")
PROTO = Path("spec/cri/v1/api.proto")
LIFECYCLES = Path("spec/lifecycles")
REFERENCE = Path("docs/configuration.md")
# What is generated: whole folders by their patterns, so that a page whose source is gone is found too.
PATTERNS = (f"{STUBS}/api_*", f"{LIFECYCLES}/*.md", f"{REFERENCE}")
TOOL_TIMEOUT_S = 120


def write_stubs(root: Path, out: Path) -> None:
    """Compile the proto of `root` into stubs below `out`.

    Raises:
        subprocess.CalledProcessError: the proto has an error, which the compiler printed.
    """
    plugin = Path(sysconfig.get_path("scripts")) / "protoc-gen-grpclib_python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--plugin=protoc-gen-grpclib_python={plugin}",
            f"-I{STUBS}={root / PROTO.parent}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpclib_python_out={out}",
            str(STUBS / PROTO.name),
        ],
        check=True,
        timeout=TOOL_TIMEOUT_S,
    )


def write_pages(root: Path, out: Path) -> None:
    """Write what the code of `root` says of itself below `out`: lifecycles and options.

    Raises:
        subprocess.CalledProcessError: the code does not load; why was printed.
    """

    def module(*argv: str) -> bytes:
        command = [sys.executable, "-m", *argv]
        return subprocess.run(command, cwd=root, check=True, timeout=TOOL_TIMEOUT_S, stdout=subprocess.PIPE).stdout

    module("scripts.lifecycles", str(out / LIFECYCLES))
    reference = module("crio_server.config.reference")
    (out / REFERENCE).parent.mkdir(parents=True, exist_ok=True)
    (out / REFERENCE).write_bytes(reference)


def generated_files(root: Path) -> dict[str, bytes]:
    """The generated files that are below `root` now, by path."""
    files = sorted(file for pattern in PATTERNS for file in root.glob(pattern))
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def drifted(committed: dict[str, bytes], fresh: dict[str, bytes]) -> tuple[str, ...]:
    """The paths that differ: changed, missing, or no longer made from anything."""
    return tuple(path for path in sorted({**committed, **fresh}) if committed.get(path) != fresh.get(path))


def main(argv: list[str] | None = None) -> int:
    """Write the files, or with `--check` tell whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is out of date")
    if not parser.parse_args(argv).check:
        write_stubs(ROOT, ROOT)
        write_pages(ROOT, ROOT)
        return 0
    with tempfile.TemporaryDirectory(prefix="crio-generated-") as scratch:
        write_stubs(ROOT, Path(scratch))
        write_pages(ROOT, Path(scratch))
        stale = drifted(generated_files(ROOT), generated_files(Path(scratch)))
    for path in stale:
        print(f"{path}: not what its source gives; run `make spec` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
