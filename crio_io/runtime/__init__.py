"""Drives OCI command line runtimes."""

from crio_io.runtime.oci import ExecResult, OciRuntime, RuntimeState

__all__ = ["ExecResult", "OciRuntime", "RuntimeState"]
