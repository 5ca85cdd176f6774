"""Talking to image registries (OCI distribution-spec). httpx is imported when the first request is made, not before."""

import sys

# httpx imports its command line program, and with it rich and pygments, where those are installed: 3.6 MB that a server
# would keep. It does without when the module cannot be had.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
