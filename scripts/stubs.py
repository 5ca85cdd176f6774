"""Compile `spec/cri/v1/api.proto` into the stubs that the server and its tools import.

The stubs are committed, so that the project runs from a checkout without a compiler; `--check` fails when they are not
what the proto gives. The proto is compiled under the path `crio_server/cri/v1`: that makes the generated imports right.
"""

import argparse
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("crio_server/cri/v1")
PROTO = Path("spec/cri/v1/api.proto")
GENERATED = ("api_pb2.py", "api_pb2.pyi", "api_grpc.py")
COMPILE_TIMEOUT_S = 120


def compile_proto(root: Path, out: Path) -> None:
    """Run the compiler on the proto of `root`, writing below `out`.

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
            f"-I{PACKAGE}={root / PROTO.parent}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpclib_python_out={out}",
            str(PACKAGE / PROTO.name),
        ],
        check=True,
        timeout=COMPILE_TIMEOUT_S,
    )


def drifted(root: Path) -> tuple[str, ...]:
    """The committed stubs of `root` that differ from what its proto gives now."""
    with tempfile.TemporaryDirectory(prefix="crio-stubs-") as scratch:
        out = Path(scratch)
        compile_proto(root, out)
        return tuple(
            str(PACKAGE / name)
            for name in GENERATED
            if not (root / PACKAGE / name).exists()
            or (out / PACKAGE / name).read_bytes() != (root / PACKAGE / name).read_bytes()
        )


def main(argv: list[str] | None = None) -> int:
    """Write the stubs, or with `--check` tell whether they are up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a stub is out of date")
    if not parser.parse_args(argv).check:
        compile_proto(ROOT, ROOT)
        return 0
    stale = drifted(ROOT)
    for path in stale:
        print(f"{path}: not what {PROTO} gives; run `make spec` and commit the result", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
