"""Annotations of a spec: those that runtimes need, and those of a pod that the configuration lets through.

Runtimes act on annotations: as systemd properties (CVE-2024-3154), as limits (CVE-2023-6476), as commands. So nothing
of a pod passes by default. An entry of the allow-list is a whole key; only one that ends in `*`, `/` or `.` is a
prefix. The image's labels are never looked at (CVE-2026-53488).
"""

from collections.abc import Mapping, Sequence

from crio_core.errors import invalid
from crio_core.oci.plan import ContainerPlan

SANDBOX_ANNOTATION = "io.kubernetes.cri-o.SandboxID"
ANNOTATIONS_BYTES_MAX = 256 * 1024  # Kubernetes' own bound

# Written by this runtime alone, or too mighty to be anybody's: never taken from a pod, allow-listed or not.
RESERVED_PREFIXES = (
    "io.kubernetes.cri-o.",
    "io.kubernetes.cri.",
    "org.systemd.property.",
    "org.opencontainers.image.",
    "io.container.manager",
)


def _allows(entry: str, key: str) -> bool:
    if entry.endswith("*"):
        return len(entry) > 1 and key.startswith(entry[:-1])
    if entry.endswith(("/", ".")):
        return key.startswith(entry)
    return key == entry


def passed_on(given: Mapping[str, str], allowed: Sequence[str]) -> dict[str, str]:
    """The annotations of a request that its runtime may see."""
    if not allowed:
        return {}
    return {
        key: value
        for key, value in given.items()
        if not key.startswith(RESERVED_PREFIXES) and any(_allows(entry, key) for entry in allowed)
    }


def annotations(plan: ContainerPlan) -> dict[str, str]:
    """The `annotations` object. runsc and kata tell sandboxes from their containers by the names of either family."""
    kind = "sandbox" if plan.is_sandbox else "container"
    for field, given in (("annotations", plan.config.annotations), ("sandbox annotations", plan.sandbox.annotations)):
        size = sum(len(key) + len(value) for key, value in given.items())
        if size > ANNOTATIONS_BYTES_MAX:
            raise invalid(field, f"{size} characters", f"at most {ANNOTATIONS_BYTES_MAX}")
    found = passed_on(plan.sandbox.annotations, plan.defaults.allowed_annotations)
    found |= passed_on(plan.config.annotations, plan.defaults.allowed_annotations)
    pod = plan.sandbox.metadata
    found |= {
        "io.container.manager": "cri-o",
        "io.kubernetes.cri-o.ContainerType": kind,
        "io.kubernetes.cri-o.ContainerID": plan.container_id,
        SANDBOX_ANNOTATION: plan.sandbox_id,
        "io.kubernetes.cri.container-type": kind,
        "io.kubernetes.cri.sandbox-id": plan.sandbox_id,
        "io.kubernetes.cri.sandbox-name": pod.name,
        "io.kubernetes.cri.sandbox-namespace": pod.namespace,
        "io.kubernetes.cri.sandbox-uid": pod.uid,
    }
    if not plan.is_sandbox:
        found["io.kubernetes.cri.container-name"] = plan.config.metadata.name
    if plan.image_name:
        found["io.kubernetes.cri-o.ImageName"] = plan.image_name
        found["io.kubernetes.cri.image-name"] = plan.image_name
    return found
