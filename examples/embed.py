"""A command in a pod, from Python, with no daemon: sudo python examples/embed.py IMAGE COMMAND [ARGUMENT...]"""

import sys
from pathlib import Path

import anyio

from crio_core.cri import (
    ContainerConfig,
    ContainerMetadata,
    ImageSpec,
    LinuxContainerConfig,
    LinuxContainerSecurityContext,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
    PodSandboxMetadata,
)
from crio_io import EngineOptions, open_engine

HERE = Path("/var/lib/crio-embed")
# The host's network, and a process namespace for each container: so this needs no CNI configuration and no pause image.
NAMESPACES = NamespaceOption(network=NamespaceMode.NODE, pid=NamespaceMode.CONTAINER)
LINUX = LinuxPodSandboxConfig(security_context=LinuxSandboxSecurityContext(namespace_options=NAMESPACES))


async def run(image: str, command: tuple[str, ...], directory: Path = HERE) -> int:
    """Run a command to its end, print what it wrote, and return its exit code."""
    async with open_engine(EngineOptions(root=directory / "root", runroot=directory / "run")) as engine:
        await engine.pull(image)
        pod = await engine.run_pod(
            PodSandboxConfig(
                metadata=PodSandboxMetadata(name="embed", namespace="examples", uid="1"),
                log_directory=str(directory / "logs"),
                linux=LINUX,
            )
        )
        try:
            container = await engine.create_container(
                pod,
                ContainerConfig(
                    metadata=ContainerMetadata(name="main"),
                    image=ImageSpec(image=image),
                    command=command,
                    log_path="main.log",
                    linux=LinuxContainerConfig(
                        security_context=LinuxContainerSecurityContext(namespace_options=NAMESPACES)
                    ),
                ),
            )
            await engine.start_container(container)
            ended = await engine.wait_container(container)
            log = await engine.read_log(container)
            print(log.stdout.decode(), end="")
            print(log.stderr.decode(), end="", file=sys.stderr)
            return ended.exit_code
        finally:
            await engine.remove_pod(pod)


if __name__ == "__main__":
    sys.exit(anyio.run(run, sys.argv[1], tuple(sys.argv[2:])))
