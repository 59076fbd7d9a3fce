#!/usr/bin/env bash
# Makes the base image where none can be pulled: Debian with Python, from the mirror that this machine's apt uses. Root, debootstrap.
# usage: base.sh IMAGE (e.g. tessera-base:bookworm). Nothing is done where the image is there.
set -euo pipefail

IMAGE=${1:?usage: base.sh IMAGE}
SUITE=bookworm
PACKAGES=python3,python3-venv,python3-pip,ca-certificates

say() { echo "base image: $*" >&2; }

if docker image inspect "$IMAGE" >/dev/null 2>&1; then
  say "$IMAGE is there"
  exit
fi
[ "$(id -u)" = 0 ] || { say "only root can run debootstrap; or give an image with python3 and pip: BASE_IMAGE=python:3.11-slim-$SUITE make images"; exit 1; }
command -v debootstrap >/dev/null || { say "debootstrap is not installed (deploy/engine.sh start does it)"; exit 1; }
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' "Codename: $SUITE" 'Component: main' | head -n 1)
[ -n "$mirror" ] || { say "this machine's apt has no mirror of $SUITE"; exit 1; }

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
say "debootstrap $SUITE (a minute)"
debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$root" "$mirror" >"$root.log" 2>&1 || { tail -n 15 "$root.log" >&2; exit 1; }
rm -rf "$root.log" "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/usr/share/{doc,man,locale,info}/*
tar -C "$root" --exclude './dev/*' --exclude './proc/*' --exclude './sys/*' -c . |
  docker import -c 'ENV LANG=C.UTF-8' -c 'CMD ["python3"]' - "$IMAGE" >/dev/null
say "$IMAGE: $(($(docker image inspect -f '{{.Size}}' "$IMAGE") >> 20)) MiB"
