"""A container of a published system: a process that holds models and answers, driven by lines of JSON on its standard streams.

python -m benchmarks.container LIBRARIES        imports them (separated by commas) and says so

Three ways to a model: *load* builds its module and reads its weights; *map* builds it without memory, copies what is missing into a store
on tmpfs, a file for each tensor, and maps all of it; *transform* makes a live flat program into it and copies every weight, as Optimus
does. Transformations happen between flat programs here, which is kinder than between modules: no module is built. What was loaded becomes
a flat program after its first answer, when nobody waits.
"""

from __future__ import annotations

import base64
import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.startmodels import BY_MODEL, FOLDER, TENSORS, StartModel, first_of


class Copied:
    """Implements `BlobSource` with memory of its own."""

    def __init__(self, artifact: Any) -> None:
        self._artifact = artifact

    def graph(self) -> bytes:
        data: bytes = (FOLDER / "blobs" / self._artifact.graph.digest).read_bytes()
        return data

    def tensors(self) -> Mapping[str, np.ndarray]:
        from tessera.tensorstore.mapping import numpy_dtype

        artifact, found = self._artifact, {}
        pack = (FOLDER / "blobs" / artifact.pack.digest).read_bytes() if artifact.pack else b""
        for ref in artifact.tensors:
            if ref.pack_offset is None:
                array = np.fromfile(FOLDER / "blobs" / ref.digest, numpy_dtype(ref.dtype))
            else:
                array = np.frombuffer(pack[ref.pack_offset : ref.pack_offset + ref.size_bytes], numpy_dtype(ref.dtype))
            found[ref.slot] = array.reshape(ref.shape)
            found[ref.slot].flags.writeable = False
        return found

    def derived(self, make: Any) -> Any:
        return make()


class Flat:
    """A model as a flat program with copied weights."""

    def __init__(self, model: StartModel) -> None:
        from tessera.tensorstore.artifact import decode

        self.digest = json.loads((FOLDER / "artifacts.json").read_text())[model.name]
        self.artifact = decode((FOLDER / "blobs" / self.digest).read_bytes())
        self.blobs = Copied(self.artifact)
        self.loaded: Any = None

    def run(self, model: StartModel) -> np.ndarray:
        from tessera.runtime.backends.interface import Tensor

        kinds = {spec.name: spec.datatype for spec in self.artifact.signature.inputs}
        given = {name: Tensor(kind, array) for (name, kind), array in zip(kinds.items(), model.arrays(), strict=True)}
        answer: np.ndarray = next(iter(self.loaded.run(given).values())).array
        return answer


class Container:
    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}
        self._flat: dict[str, Flat] = {}
        self._backend: Any = None

    def load(self, name: str) -> None:
        import torch

        model = BY_MODEL[name]
        module = model.architecture.build()
        module.load_state_dict(torch.load(model.state, weights_only=True))
        self._modules[name] = module

    def map(self, name: str, store: str) -> None:
        import torch

        model = BY_MODEL[name]
        with torch.device("meta"):
            module = model.architecture.build()
        index = json.loads(model.index.read_text())
        state = {key: torch.from_numpy(mapped(Path(store), *found)) for key, found in index.items()}
        module.load_state_dict(state, assign=True)
        self._modules[name] = materialised(module)

    def transform(self, name: str, donor: str, delta: str) -> None:
        from tessera.runtime.backends.interface import Donor

        model, source = Flat(BY_MODEL[name]), self._flat.pop(donor)
        given = Donor(source.artifact, source.blobs, source.loaded)
        model.loaded = self._backend.transform(given, base64.b64decode(delta), model.artifact, model.digest, model.blobs)
        source.loaded.close()
        self._flat[name] = model

    def flatten(self, name: str) -> None:
        """So that it can be a donor."""
        if self._backend is None:
            import torch

            from tessera.runtime.backends.aten.backend import AtenBackend
            from tessera.runtime.backends.interface import BackendConfig

            self._backend = AtenBackend(BackendConfig(torch.get_num_threads(), FOLDER))
        model = Flat(BY_MODEL[name])
        model.loaded = self._backend.load(model.artifact, model.digest, model.blobs)
        self._flat[name] = model
        self._modules.pop(name)

    def drop(self, name: str) -> None:
        self._modules.pop(name, None)
        self._flat.pop(name, None)

    def run(self, name: str) -> bool:
        """Whether the answer is right."""
        import torch

        model = BY_MODEL[name]
        if name in self._flat:
            return model.right(self._flat[name].run(model))
        with torch.inference_mode():
            answer = self._modules[name](*(torch.from_numpy(array) for array in model.arrays()))
        return model.right(first_of(answer).numpy())


def mapped(store: Path, digest: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the store, put there first where it is missing."""
    path = store / digest
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}")
        shutil.copyfile(TENSORS / digest, partial)
        os.replace(partial, path)
    if not prod(shape):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=tuple(shape)) if shape else np.fromfile(path, dtype).reshape(())


def materialised(module: Any) -> Any:
    """What was made without memory and is in no state dictionary (position ids of a transformer) gets its values."""
    import torch

    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:
            where, _, last = name.rpartition(".")
            filled = torch.arange(buffer.numel()) if last == "position_ids" else torch.zeros(buffer.numel(), dtype=buffer.dtype)
            module.get_submodule(where).register_buffer(last, filled.view(buffer.shape), persistent=False)
    return module


def main() -> None:
    import torch

    for library in sys.argv[1].split(","):
        importlib.import_module(library)
    torch.set_grad_enabled(False)
    container = Container()
    print(json.dumps({"ms": 0.0}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        begun = time.perf_counter()
        found = getattr(container, command.pop("do"))(**command)
        print(json.dumps({"ms": (time.perf_counter() - begun) * 1e3, "right": found}), flush=True)


if __name__ == "__main__":
    main()
