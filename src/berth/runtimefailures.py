"""What container runtimes say when they cannot start a container, and what to do about it.

Texts are those of Podman 4.3 and 5 with runc and crun, of containers/image below it, and of Apptainer 1.4. A recipe's
own table of failures has what its service says.
"""

from __future__ import annotations

from berth.diagnose import KnownFailure

_IDS = "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER; `doctor` tells more."

PODMAN = (
    KnownFailure(
        r"unresolvable CDI devices",
        "The node has no CDI specification of the devices, so that nvidia.com/gpu=all means nothing to Podman.",
        "As root, and again after every update of the driver: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
    ),
    KnownFailure(
        r"Error: .*(manifest unknown|name unknown|image not known|not found: manifest|requested access .* denied)",
        "The registry does not have this image, or not for this user.",
        "Mirror it into the site's registry, correct reference or digest in the recipe, or log in (podman login).",
    ),
    KnownFailure(
        r"Error: .*(x509: |certificate )",
        "The certificate of the registry is not trusted on this node.",
        "Put the site's CA into /etc/containers/certs.d/REGISTRY or the system's certificates.",
    ),
    KnownFailure(
        r"Error: .*(pinging container registry|dial tcp|connection refused|no such host|i/o timeout)",
        "The registry cannot be reached from this node.",
        "See that it is up and that compute nodes reach it (site proxy, firewall), or use a registry inside the site.",
    ),
    KnownFailure(
        r"Error: .*(potentially insufficient UIDs|not enough IDs available|cannot find (uid|gid|UID/GID)|newuidmap)",
        "This user has no, or too few, subordinate ids on this node, so that the image cannot be unpacked.",
        f"Ask for a range of ids; {_IDS}",
    ),
    KnownFailure(
        r"Error: .*no space left on device",
        "The disk with Podman's images and containers is full.",
        "Remove images that nobody uses (podman image prune --all), or set podman.storage to a larger local disk.",
    ),
    KnownFailure(
        r"Error: .*(overlay.* is not supported over|kernel does not support overlay|overlay.*invalid argument)",
        "Podman's storage is on a file system that cannot hold containers, most often a network one.",
        "Set podman.storage in the platform file to a local disk of the node.",
    ),
    KnownFailure(
        r"Error: .*(statfs|error mounting) .*no such file or directory",
        "A folder that is to be mounted into the container is not there on this node.",
        "See the path in the line: the model, the scratch folder, or a --volume of podman.options.",
    ),
    KnownFailure(
        r"Error: .*(rlimit|setrlimit).*operation not permitted",
        "The node's limits are lower than those that Podman wants to set.",
        "Set default_ulimits in containers.conf to what `ulimit -Hn` and `ulimit -Hu` allow, or have them raised.",
    ),
    KnownFailure(
        r"Error: .*exec format error",
        "The image was built for another processor.",
        "Use an image for this node's architecture.",
    ),
    KnownFailure(
        r"Error: .*executable file .*not found in \$PATH",
        "The image has no such program.",
        "Compare the recipe's entrypoint, and client.python, with what the image holds.",
    ),
)

APPTAINER = (
    KnownFailure(
        r"FATAL: .*(could not open image|image format not recognized|failed to (load|retrieve) .*(SIF|image))",
        "The SIF is missing or damaged, as a build that was killed leaves one.",
        "Delete it and the image's receipt in results/images, and run again, so that it is staged again.",
    ),
    KnownFailure(
        r"FATAL: .*(mount source .* doesn't exist|while mounting.*no such file or directory|stat .*no such file)",
        "A folder that is to be bound into the container is not there on this node.",
        "See the path in the line: the model, the scratch folder, or a --bind of apptainer.options.",
    ),
    KnownFailure(
        r"(FATAL|ERROR): .*(user namespace|fakeroot|subuid|subgid|newuidmap)",
        "This user cannot be root inside a container on this node (--fakeroot).",
        f"User namespaces must be on (sysctl user.max_user_namespaces) and the user needs subordinate ids; {_IDS}",
    ),
    KnownFailure(
        r"(FATAL|ERROR): .*no space left on device",
        "The disk on which Apptainer unpacks is full.",
        "Free room in the platform's scratch, or move paths.scratch to a larger local disk.",
    ),
    KnownFailure(
        r"FATAL: .*executable file not found in \$PATH",
        "The image has no such program.",
        "Compare the recipe's entrypoint, and client.python, with what the image holds.",
    ),
)


def runtime_failures(runtime: str) -> tuple[KnownFailure, ...]:
    """The table of a container runtime; none for plain processes."""
    return {"podman": PODMAN, "apptainer": APPTAINER}.get(runtime, ())
