"""Loads broken copies of an ONNX file: GOOD FOLDER COUNT. Prints how many were refused; anything but a domain error ends it."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from tessera.domain.errors import TesseraError
from tessera.registry.importer import onnx_file


def main(good: Path, folder: Path, count: int) -> None:
    data = good.read_bytes()
    # Bytes of weights make other weights; the structure is what can break.
    places = [at for at in range(len(data)) if at < 600 or at > len(data) - 900]
    refused = 0
    for seed in range(count):
        draw = random.Random(seed)
        broken = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            broken[draw.choice(places)] = draw.randint(0, 255)
        scratch = folder / str(seed)
        scratch.mkdir(parents=True)
        path = scratch / "m.onnx"
        path.write_bytes(broken)
        try:
            onnx_file.load(path, "m.onnx", scratch)
        except TesseraError as error:
            refused += 1
            if "m.onnx" not in str(error):
                raise SystemExit(f"{seed}: {error}") from error
    print(refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
