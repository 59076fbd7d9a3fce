"""What kind of source an uploaded folder is, judged by names and small JSON files alone, before torch is imported."""

from __future__ import annotations

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any

from tessera.domain.errors import InvalidInput, Unsupported

PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
_CONFIG_LIMIT_BYTES = 4 << 20
ACCEPTED = (
    "a Hugging Face folder (config.json and safetensors), one .pt2 archive, one ONNX file (its external data beside it), "
    "or a builder reference"
)


def refuse_links(folder: Path) -> None:
    """Raises: InvalidInput naming the first link, or entry that is no regular file, below `folder`."""
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            shown = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise InvalidInput("file", shown, "links are not followed; upload the file itself")
            if name in files and not path.is_file():
                raise InvalidInput("file", shown, "only regular files are taken")


def source_kind(folder: Path) -> str:
    """ "directory", "pt2" or "onnx".

    Raises:
        InvalidInput: names what is missing or in the way.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    onnx = [name for name in names if name.endswith(".onnx")]
    # exporters put an ONNX file beside the config.json of what it was made of
    if (folder / "config.json").is_file() and (not onnx or any(name.endswith(".safetensors") for name in names)):
        return "directory"
    archives = [name for name in names if name.endswith(".pt2")]
    if len(archives) + len(onnx) > 1:
        raise InvalidInput("source", ", ".join([*archives, *onnx][:5]), "one .pt2 archive or ONNX file per version")
    if archives or onnx:
        return "pt2" if archives else "onnx"  # whatever lies beside it is read as bytes, if at all
    pickled = [name for name in names if name.endswith(PICKLED_SUFFIXES)]
    if pickled:
        raise InvalidInput("file", pickled[0], f"pickle files run code when they are read and are refused; accepted is {ACCEPTED}")
    raise InvalidInput("source", ", ".join(names[:5]) or "(empty)", f"config.json is missing; accepted is {ACCEPTED}")


def read_json(path: Path, shown: str) -> Any:
    """Raises: InvalidInput when the file is missing, too large, or no JSON object or list."""
    try:
        if path.stat().st_size > _CONFIG_LIMIT_BYTES:
            raise InvalidInput("file", shown, f"at most {_CONFIG_LIMIT_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput("file", shown, "is missing") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput("file", shown, f"is no valid JSON ({error})") from None
    if not isinstance(found, (dict, list)):
        raise InvalidInput("file", shown, "must hold a JSON object or list")
    return found


def check_hugging_face(folder: Path) -> dict[str, Any]:
    """Reads config.json and looks that the weights are there, all of them, as safetensors.

    Raises:
        InvalidInput: names the file that is missing, pickled, or leads out of the folder.
        Unsupported: the folder wants its own code to be run.
    """
    config = read_json(folder / "config.json", "config.json")
    if not isinstance(config, dict):
        raise InvalidInput("file", "config.json", "must hold a JSON object")
    if config.get("auto_map"):
        raise Unsupported(
            f"config.json: auto_map {json.dumps(config['auto_map'])[:200]} asks to run code that comes with the model, which is refused; "
            f"use an architecture that is part of transformers, or export the model to .pt2"
        )
    if config.get("quantization_config"):
        raise Unsupported("config.json: quantization_config: quantised weights are not imported; use the float weights")
    if (folder / "model.safetensors").is_file():
        return config
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        _check_shards(folder, index)
        return config
    names = sorted(p.name for p in folder.iterdir() if p.is_file())
    pickled = [name for name in names if name.endswith(PICKLED_SUFFIXES)]
    if pickled:
        raise InvalidInput(
            "file",
            pickled[0],
            "pickled weights run code when they are read and are refused; save the model with safetensors (model.safetensors)",
        )
    raise InvalidInput("file", "model.safetensors", "is missing (weights as safetensors, one file or shards with an index)")


def _check_shards(folder: Path, index: Path) -> None:
    listing = read_json(index, index.name)
    weights = listing.get("weight_map") if isinstance(listing, dict) else None
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, str) for v in weights.values()):
        raise InvalidInput("file", index.name, "must hold a weight_map from tensors to files")
    for shard in sorted(set(weights.values())):
        parts = PurePosixPath(shard).parts
        if not parts or shard.startswith("/") or "\\" in shard or ".." in parts or len(parts) != 1:
            raise InvalidInput(f"{index.name}: shard", shard, "must be a file beside the index")
        if not shard.endswith(".safetensors"):
            raise InvalidInput(f"{index.name}: shard", shard, "must be a safetensors file")
        if not (folder / shard).is_file():
            raise InvalidInput("file", shard, f"is missing ({index.name} names it)")
