"""Lays out each image's build context and has the engine build what changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.images.spec import Image
from deploy.images.wheels import Wheelhouse, closure, libraries, own

INPUTS_LABEL = "tessera.inputs"
"""Hash of all that an image was made from: one that carries the current hash is not built again."""
_ETCD_PACKAGES = ("etcd-server", "etcd-client")


@dataclass(frozen=True)
class Context:
    """Files of a build context by their path in it, and the hash of their names, contents and base image."""

    files: Mapping[str, Path]
    inputs: str


class BuildFailed(Exception):
    """The engine, pip or apt refused; the message has its last words."""


class Builder:
    """`say` gets a line for each step."""

    def __init__(self, base_image: str, tag: str, wheelhouse: Path, say: Callable[[str], None]) -> None:
        self._base_image = base_image
        self._base_id = inspect(base_image, "{{.Id}}")
        self._tag = tag
        self._folder = wheelhouse
        self._wheelhouse = Wheelhouse(wheelhouse, say)
        self._say = say

    def build(self, image: Image) -> bool:
        """False: it was up to date.

        Raises: BuildFailed.
        """
        reference = image.reference(self._tag)
        context = self._etcd(image) if not image.requirement else self._python(image)
        if inspect(reference, f'{{{{index .Config.Labels "{INPUTS_LABEL}"}}}}') == context.inputs:
            return False
        folder = self._lay_out(image, context)
        self._say(f"{reference}: building")
        command = ["docker", "build", "-q", "-t", reference, "-f", str(folder / "Dockerfile"), "--network", "none"]
        command += ["--label", f"{INPUTS_LABEL}={context.inputs}", "--build-arg", f"BASE_IMAGE={self._base_image}", str(folder)]
        earlier = inspect(reference, "{{.Id}}")
        run(command)
        if earlier and earlier != inspect(reference, "{{.Id}}"):
            # Nameless now; where a container still has it, it stays.
            subprocess.run(["docker", "image", "rm", earlier], capture_output=True, check=False)
        return True

    def _python(self, image: Image) -> Context:
        layers = libraries(image.layers)
        needed = closure(image.requirement)
        absent = needed - own(needed) - frozenset().union(*layers.values())
        assert not absent, f"no layer of {image.name} has {sorted(absent)}"
        wheels = self._wheelhouse.fill(sorted(frozenset().union(*layers.values())))
        ours = self._wheelhouse.build_own()
        files = {"Dockerfile": image.dockerfile}
        files |= {f"libraries/{layer}/{wheels[name].name}": wheels[name] for layer, names in layers.items() for name in names}
        files |= {f"own/{ours[name].name}": ours[name] for name in own(needed)}
        return self._context(files)

    def _etcd(self, image: Image) -> Context:
        folder = self._folder / "packages"
        folder.mkdir(parents=True, exist_ok=True)
        for package in _ETCD_PACKAGES:
            if not any(folder.glob(f"{package}_*.deb")):
                self._say(f"wheelhouse: {package} by apt")
                run(["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", package], folder)
        return self._context({"Dockerfile": image.dockerfile} | {f"packages/{path.name}": path for path in folder.glob("*.deb")})

    def _context(self, files: Mapping[str, Path]) -> Context:
        digest = hashlib.sha256(self._base_id.encode())
        for name, path in sorted(files.items()):
            # A library's wheel is named by its version; ours keep theirs while the code changes, and lie in a folder named by its hash.
            content = path.read_bytes() if name == "Dockerfile" else path.parent.name.encode()
            digest.update(f"\0{name}\0".encode() + content)
        return Context(files, digest.hexdigest()[:16])

    def _lay_out(self, image: Image, context: Context) -> Path:
        folder = self._folder / "contexts" / image.name
        shutil.rmtree(folder, ignore_errors=True)
        for name, path in context.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)
        return folder


def inspect(reference: str, template: str) -> str:
    """What the engine says about an image; "" where it has none of that name."""
    found = subprocess.run(["docker", "image", "inspect", "-f", template, reference], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""


def size_bytes(reference: str) -> int:
    return int(inspect(reference, "{{.Size}}") or 0)


def run(command: list[str], folder: Path | None = None) -> None:
    """Raises: BuildFailed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip().splitlines()[-25:]
        raise BuildFailed(f"{' '.join(command[:2])} ended with {done.returncode}:\n" + "\n".join(words))
