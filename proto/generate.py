"""Writes proto/python from proto/**/*.proto. Run by `make proto`; `make proto-check` compares instead of writing.

Our own conversations keep what protoc makes. The Open Inference messages differ in one line: they are added to a descriptor
pool of their own (docs/adr/0004), because the default pool allows each name once per process and tritonclient owns it there.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
OUT = ROOT / "python" / "tessera" / "api"
OPEN_INFERENCE = "tessera/api/open_inference"


def generate(target: Path) -> None:
    """Generates every module below `target` (a folder that will hold `tessera/api/...`)."""
    staged = target / "_protos"
    shutil.copytree(ROOT / "tessera", staged / "tessera")
    shutil.copytree(ROOT / "open_inference", staged / OPEN_INFERENCE)
    protos = sorted(str(path.relative_to(staged)) for path in staged.rglob("*.proto"))
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{staged}", f"-I{well_known}", f"--python_out={target}", f"--mypy_out=quiet:{target}"]
    ours = [name for name in protos if not name.startswith(OPEN_INFERENCE)]
    with_services = [name for name in ours if "service " in (staged / name).read_text()]
    if protoc.main([*arguments, *protos]):
        sys.exit("protoc failed")
    if protoc.main(["protoc", f"-I{staged}", f"--grpc_python_out={target}", f"--mypy_grpc_out=quiet:{target}", *with_services]):
        sys.exit("protoc failed")
    shutil.rmtree(staged)
    module = target / OPEN_INFERENCE / "inference_pb2.py"
    text = module.read_text()
    marker = "_descriptor_pool.Default()"
    if text.count(marker) != 1:
        sys.exit(f"{module.name}: expected exactly one {marker}")
    module.write_text(text.replace(marker, "_descriptor_pool.DescriptorPool()"))
    for folder in {path.parent for path in target.rglob("*_pb2.py")}:
        (folder / "py.typed").touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the committed stubs are stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        made = fresh / "tessera" / "api"
        if check:
            names = sorted({str(p.relative_to(base)) for base in (made, OUT) for p in base.rglob("*.py*") if p.suffix in {".py", ".pyi"}})
            _, different, missing = filecmp.cmpfiles(made, OUT, names, shallow=False)
            if different or missing:
                sys.exit(f"stale stubs, run 'make proto': {', '.join(different + missing)}")
            return
        shutil.rmtree(OUT, ignore_errors=True)
        shutil.copytree(made, OUT)


if __name__ == "__main__":
    main()
