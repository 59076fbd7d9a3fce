"""What the import subprocess may not do, asked of a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tessera.registry.adapters.sandbox import _environment

PROBE = """
import os, sys
from pathlib import Path
from tessera.registry.importer.confine import confine, install_audit_hook
from tessera.registry.importer.task import Limits
limits = Limits(memory_bytes=1 << 30, cpu_s=30, file_bytes=1 << 20, open_files=64)
{before}
print(confine(limits, os.getppid()), flush=True)
install_audit_hook(Path(sys.argv[1]))
try:
    {code}
except BaseException as error:
    print(type(error).__name__, error)
else:
    print("allowed")
"""


def probe(tmp_path: Path, code: str, before: str = "") -> tuple[str, str]:
    """How the network was cut, and what became of `code`."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE.format(code=code, before=before), str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) >= 2, done.stderr
    return lines[0], lines[1]


@pytest.mark.parametrize("without_namespaces", [False, True])
def test_no_network(tmp_path: Path, without_namespaces: bool) -> None:
    before = "import tessera.registry.importer.confine as c; c._cut_network = lambda libc: 'hook'" if without_namespaces else ""
    for code in ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "import socket; socket.getaddrinfo('example.org', 80)"):
        how, became = probe(tmp_path, code, before)
        assert became.startswith("PermissionError the import sandbox allows no socket."), became
    assert how == ("hook" if without_namespaces else how)
    if how == "namespace":
        _, interfaces = probe(tmp_path, "print(open('/proc/self/net/dev').read().count(':'))")
        assert interfaces == "1"  # a loopback that is down


@pytest.mark.parametrize(
    "code",
    [
        "open('/tmp/registry-sandbox-probe', 'w')", "os.open('/tmp/registry-sandbox-probe', os.O_CREAT | os.O_WRONLY)",
        "os.remove('/etc/hostname')", "os.mkdir('/tmp/registry-sandbox-probe')", "os.system('true')",
        "import subprocess; subprocess.run(['true'])", "os.fork()",
        "os.symlink('/etc', '/tmp/registry-sandbox-probe')", "import pickle; pickle.loads(b'cos\\nsystem\\n.')",
    ],
)  # fmt: skip
def test_no_writing_outside_no_programs_no_pickled_classes(tmp_path: Path, code: str) -> None:
    assert probe(tmp_path, code)[1].startswith("PermissionError the import sandbox"), code
    assert not Path("/tmp/registry-sandbox-probe").exists()


def test_writing_below_its_folder_and_reading_anywhere(tmp_path: Path) -> None:
    assert probe(tmp_path, f"open({str(tmp_path / 'x')!r}, 'w').write('y'); open('/etc/hostname').read()")[1] == "allowed"
    assert (tmp_path / "x").read_text() == "y"


def test_link_out_of_its_folder_does_not_help(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/tmp")
    assert probe(tmp_path, f"open({str(tmp_path / 'out/registry-sandbox-probe')!r}, 'w')")[1].startswith("PermissionError")


def test_memory_and_files_are_bounded(tmp_path: Path) -> None:
    assert probe(tmp_path, "bytearray(2 << 30)")[1].startswith("MemoryError")
    assert probe(tmp_path, f"open({str(tmp_path / 'big')!r}, 'wb').write(bytes(2 << 20))")[1].startswith("OSError [Errno 27]")
    assert probe(tmp_path, "[open('/dev/null') for _ in range(100)]")[1].startswith("OSError [Errno 24]")


def test_dies_with_who_started_it(tmp_path: Path) -> None:
    code = PROBE.format(code="import time; time.sleep(60)", before="")
    middle = (
        f"import os, subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {code!r}, {str(tmp_path)!r}], stdout=subprocess.PIPE); "
        "print(p.stdout.readline() and p.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", middle], capture_output=True, text=True, timeout=60, check=True)
    pid = int(done.stdout)
    for _ in range(100):
        try:
            if "zombie" in Path(f"/proc/{pid}/status").read_text():
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        subprocess.run(["sleep", "0.05"], check=True)
    os.kill(pid, 9)
    raise AssertionError("the sandbox outlived the registry")


def test_environment_holds_nothing_of_ours(tmp_path: Path) -> None:
    outer = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://p",
        "TESSERA_TOKEN": "secret",
        "HF_TOKEN": "secret",
        "PYTHONPATH": "/x",
        "LD_PRELOAD": "/y",
    }
    inner = _environment(outer, tmp_path, 2)
    assert inner["HF_HUB_OFFLINE"] == inner["TRANSFORMERS_OFFLINE"] == inner["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
    assert not {"HTTPS_PROXY", "TESSERA_TOKEN", "HF_TOKEN", "PYTHONPATH", "LD_PRELOAD"} & set(inner)
    assert inner["HOME"] == str(tmp_path)
