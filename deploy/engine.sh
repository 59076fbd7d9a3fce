#!/usr/bin/env bash
# A Docker Engine where none answers: engine.sh start | stop | status. Root on Debian; packages docker.io, docker-compose, debootstrap, iptables.
#
# `start` does nothing where an engine answers. `stop` ends only what `start` started (it has left its pid in STATE), with its
# containers; images stay on disk for the next start.
set -euo pipefail

STATE=${TESSERA_ENGINE_STATE:-/run/tessera-engine}
PATIENCE_S=60

say() { echo "engine: $*" >&2; }
answers() { docker version --format '{{.Server.Version}}' 2>/dev/null; }

install() {
  local missing=()
  command -v dockerd >/dev/null || missing+=(docker.io)
  command -v docker >/dev/null || missing+=(docker.io)
  command -v docker-compose >/dev/null || docker compose version >/dev/null 2>&1 || missing+=(docker-compose)
  command -v debootstrap >/dev/null || missing+=(debootstrap)
  command -v iptables >/dev/null || missing+=(iptables)
  [ ${#missing[@]} = 0 ] && return
  command -v apt-get >/dev/null || { say "missing here, and no apt-get to install it: ${missing[*]}"; exit 1; }
  say "installing ${missing[*]}"
  apt-get update -qq >/dev/null
  # A service that the package would start is ours to start: there may be no init system.
  DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# Where no init system has mounted the control groups, the engine cannot limit anything: a tmpfs with one folder per controller (v1).
mount_cgroups() {
  mountpoint -q /sys/fs/cgroup && return
  say "mounting control groups"
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  local name
  for name in $(awk '!/^#/ && $4 == 1 {print $1}' /proc/cgroups); do
    mkdir -p "/sys/fs/cgroup/$name"
    mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/$name" || rmdir "/sys/fs/cgroup/$name"
  done
}

start() {
  local version begun=$SECONDS
  if [ "$(id -u)" != 0 ]; then
    if version=$(answers); then say "answers already, version $version"; return; fi
    say "none answers, and only root can start one"; exit 1
  fi
  install
  if version=$(answers); then say "answers already, version $version"; return; fi
  mount_cgroups
  mkdir -p "$STATE"
  say "starting dockerd, log $STATE/dockerd.log"
  setsid nohup dockerd --pidfile "$STATE/dockerd.pid" >"$STATE/dockerd.log" 2>&1 </dev/null &
  local pid=$!
  until version=$(answers); do
    if ! kill -0 "$pid" 2>/dev/null || ((SECONDS - begun > PATIENCE_S)); then
      say "dockerd does not answer; its last words:"; tail -n 15 "$STATE/dockerd.log" >&2
      kill "$pid" 2>/dev/null || true
      rm -f "$STATE/dockerd.pid"
      exit 1
    fi
    sleep 0.3
  done
  say "version $version answers after $((SECONDS - begun)) s"
}

stop() {
  local pid
  pid=$(cat "$STATE/dockerd.pid" 2>/dev/null) || { say "none was started by this script"; return; }
  if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]; then
    kill "$pid"
    while [ -d "/proc/$pid" ]; do sleep 0.2; done
    say "stopped"
  fi
  rm -rf "$STATE"
}

status() {
  local version
  if version=$(answers); then say "version $version answers"; else say "none answers"; return 1; fi
}

case "${1:-}" in
  start | stop | status) "$1" ;;
  *) echo "usage: $0 start | stop | status" >&2; exit 2 ;;
esac
