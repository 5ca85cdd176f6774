"""Talking to image registries (OCI distribution-spec). httpx is imported when the first request is made, not before."""
