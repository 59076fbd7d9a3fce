"""Builder references: a callable of the allow-list makes the module, with a seed, or with weights from safetensors."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

from tessera.domain.errors import InvalidInput, TesseraError, Unsupported
from tessera.registry.importer.loaded import EXAMPLE_BATCH, Axis, InputSpec, Loaded, output_names, require_float32
from tessera.registry.importer.task import Builder


def load(builder: Builder, allowed: tuple[str, ...], weights: list[Path]) -> Loaded:
    """Builds the module, loads the weights (strictly), and finds its inputs.

    Raises:
        InvalidInput: the reference is not allowed, an argument does not fit, a weight is missing, too many or of another shape.
        Unsupported: the module's input cannot be found out.
    """
    if builder.reference not in allowed:
        raise InvalidInput("builder", builder.reference, f"must be one of {', '.join(allowed)}")
    if builder.arguments.get("pretrained"):
        raise InvalidInput(
            "builder argument pretrained", True, "downloads are impossible in the sandbox; upload the weights as safetensors"
        )
    module_name, _, name = builder.reference.partition(":")
    call: Any = importlib.import_module(module_name)
    for part in name.split("."):
        call = getattr(call, part)
    torch.manual_seed(builder.seed)
    try:
        module = call(**builder.arguments)
    except TesseraError:
        raise
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in sorted(builder.arguments.items()))
        raise InvalidInput("builder arguments", shown[:200], f"{builder.reference} refuses them: {error}") from error
    if not isinstance(module, torch.nn.Module):
        raise Unsupported(f"{builder.reference} made a {type(module).__name__}, not a torch module")
    if weights:
        _load_weights(module, weights)
    module.eval()
    module.requires_grad_(False)
    if _is_transformers(module):
        from tessera.registry.importer.hugging_face import prepare

        return prepare(module)
    require_float32(module, builder.reference)
    return _image_model(module, builder.reference)


def _load_weights(module: torch.nn.Module, files: list[Path]) -> None:
    from safetensors import SafetensorError, safe_open

    wanted = module.state_dict()
    seen: dict[str, str] = {}
    for path in sorted(files):
        if not path.name.endswith(".safetensors"):
            raise InvalidInput("weights", path.name, "must be safetensors files")
        try:
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a mapping
                    if key not in wanted:
                        raise InvalidInput("weights", key, f"of {path.name}: the model has no such tensor")
                    if key in seen:
                        raise InvalidInput("weights", key, f"is in {seen[key]} and in {path.name}")
                    value = opened.get_tensor(key)
                    if value.shape != wanted[key].shape:
                        raise InvalidInput("weights", key, f"has shape {list(value.shape)}, the model has {list(wanted[key].shape)}")
                    wanted[key].copy_(value)
                    seen[key] = path.name
        except SafetensorError as error:
            raise InvalidInput("weights", path.name, f"is no safetensors file: {error}") from None
    missing = sorted(set(wanted) - set(seen) - {name for name in wanted if name.endswith("num_batches_tracked")})
    if missing:
        raise InvalidInput("weights", missing[0], f"is in no weight file ({len(missing)} of {len(wanted)} tensors are missing)")


def _is_transformers(module: torch.nn.Module) -> bool:
    return any(cls.__module__ == "transformers.modeling_utils" and cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__)


def _image_model(module: torch.nn.Module, reference: str) -> Loaded:
    """Image models as pytorchcv builds them say their size in `in_size`; the channels are their first convolution's."""
    size = getattr(module, "in_size", None)
    first = next((m for m in module.modules() if isinstance(m, torch.nn.Conv2d)), None)
    if not (isinstance(size, (tuple, list)) and len(size) == 2 and first is not None):
        raise Unsupported(f"{reference}: the model's input cannot be found out (no in_size); export it to .pt2 and register that")
    spec = InputSpec("image", torch.float32, (Axis.BATCH, first.in_channels, int(size[0]), int(size[1])))
    with torch.no_grad():
        found = module(spec.example(EXAMPLE_BATCH, 1, torch.Generator().manual_seed(0)))
    wrapped = Positional(module)
    count = 1 if isinstance(found, torch.Tensor) else len(found)
    return Loaded(wrapped, (spec,), output_names(count), prefix="module.")


class Positional(torch.nn.Module):  # type: ignore[misc] # torch is not followed
    """One tensor in, a flat tuple of tensors out, whatever the module answers with."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.module(*tensors)
        return (found,) if isinstance(found, torch.Tensor) else tuple(found)
