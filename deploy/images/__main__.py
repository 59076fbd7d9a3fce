"""python -m deploy.images [IMAGE ...] [--tag dev] [--base-image REFERENCE]: what `make images` runs. Builds what changed."""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from deploy.images.build import Builder, BuildFailed, inspect, size_bytes
from deploy.images.spec import IMAGES, IMPORTED_BASE, PULLED_BASE, ROOT, WHEELHOUSE

MIB = 1 << 20


def base_image(wanted: str) -> str:
    """The base to build from: the one asked for; else the official Python image, where the engine has it or can pull it; else one made
    of this machine's Debian mirror."""
    if wanted:
        return wanted
    for known in (PULLED_BASE, IMPORTED_BASE):
        if inspect(known, "{{.Id}}"):
            return known
    if subprocess.run(["docker", "pull", "-q", PULLED_BASE], capture_output=True, check=False).returncode == 0:
        return PULLED_BASE
    say(f"{PULLED_BASE} cannot be pulled here")
    subprocess.run([str(ROOT / "deploy" / "images" / "base.sh"), IMPORTED_BASE], check=True)
    return IMPORTED_BASE


@contextmanager
def alone() -> Iterator[None]:
    """One at a time: a wheelhouse and its build contexts belong to who fills them."""
    WHEELHOUSE.mkdir(parents=True, exist_ok=True)
    with (WHEELHOUSE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("images: waiting for who else builds some here")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main() -> int:
    """Exit code 1 when an image cannot be built, 2 for a name that is none."""
    parser = argparse.ArgumentParser(prog="make images", description=__doc__)
    parser.add_argument("images", nargs="*", help=f"of {', '.join(IMAGES)}; all by default")
    parser.add_argument("--tag", default="dev")
    parser.add_argument("--base-image", default=os.environ.get("BASE_IMAGE", ""))
    given = parser.parse_args()
    unknown = sorted(set(given.images) - set(IMAGES))
    if unknown:
        parser.error(f"no such image: {', '.join(unknown)}; known are {', '.join(IMAGES)}")
    begun = time.monotonic()
    wanted = [IMAGES[name] for name in given.images or IMAGES]
    built = {}
    try:
        with alone():
            base = base_image(given.base_image)
            builder = Builder(base, given.tag, WHEELHOUSE, say)
            for index, image in enumerate(wanted, start=1):
                started = time.monotonic()
                say(f"images {index}/{len(wanted)}: {image.name}")
                built[image.name] = f"built in {time.monotonic() - started:.0f} s" if builder.build(image) else "up to date"
    except (BuildFailed, subprocess.CalledProcessError, OSError) as error:
        say(f"images: {error}")
        return 1
    for image in wanted:
        reference = image.reference(given.tag)
        print(f"{reference:32} {size_bytes(reference) / MIB:7.0f} MiB   {built[image.name]}")
    print(f"from {base} in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
