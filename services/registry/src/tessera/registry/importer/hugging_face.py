"""Hugging Face folders: config.json and safetensors, through the class of the installed transformers that `architectures` names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from tessera.domain.errors import InvalidInput, Unsupported
from tessera.registry.importer.loaded import EXAMPLE_BATCH, EXAMPLE_SEQUENCE, Axis, InputSpec, Loaded, require_float32
from tessera.registry.importer.sentence import Pooling, SentenceEmbedding, read_pooling

_PREFIX = "model."


class Named(torch.nn.Module):  # type: ignore[misc] # torch is not followed
    """Calls a transformers model with its inputs by name; answers with the chosen outputs as a tuple."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._input_names = inputs
        self._output_names = outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self._input_names, tensors, strict=True)))
        return tuple(found[name] for name in self._output_names)


def load(folder: Path, config: dict[str, Any]) -> Loaded:
    """Loads the folder's model in float32, ready to be exported.

    Raises:
        InvalidInput: the config or a weight does not fit; names it.
        Unsupported: no class of the installed transformers.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise InvalidInput("config.json: architectures", names, "must name the model's class, as in ['BertModel']")
    architecture: Any = getattr(transformers, names[0], None)
    if not _is_model(architecture):
        raise Unsupported(
            f"architecture {names[0]!r} is not part of transformers {transformers.__version__}; "
            f"export the model to .pt2 with torch.export.save and register that"
        )
    try:
        model, report = architecture.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    except (PermissionError, MemoryError):
        raise
    except Exception as error:  # broken files make transformers and safetensors raise a dozen classes
        raise InvalidInput("source", names[0], f"transformers cannot load it: {_first_line(error)}") from error
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in report.get("mismatched_keys", ()))
    if mismatched:
        raise InvalidInput("weights", mismatched[0], "has another shape in the file than config.json says")
    loaded = prepare(model, read_pooling(folder))
    loaded.suspect = frozenset(map(str, report.get("missing_keys", ())))
    return loaded


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:400]


def _is_model(found: Any) -> bool:
    import transformers

    return inspect.isclass(found) and issubclass(found, transformers.PreTrainedModel)


def prepare(model: Any, pooling: Pooling | None = None) -> Loaded:
    """A transformers model, however it was made, with its inputs and outputs found out by looking and by one eager run."""
    model.eval()
    model.config.use_cache = False
    model.config.return_dict = True
    model.requires_grad_(False)
    require_float32(model, type(model).__name__)
    inputs = _inputs(model)
    names = tuple(spec.name for spec in inputs)
    generator = torch.Generator().manual_seed(0)
    example = {spec.name: spec.example(EXAMPLE_BATCH, EXAMPLE_SEQUENCE, generator) for spec in inputs}
    try:
        with torch.no_grad():
            found = model(**example)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise Unsupported(
            f"{type(model).__name__} does not run with {', '.join(names)} ({_first_line(error)}); "
            f"export it to .pt2 with torch.export.save and register that"
        ) from error
    outputs = tuple(key for key, value in found.items() if isinstance(value, torch.Tensor))
    if not outputs:
        raise Unsupported(f"{type(model).__name__} answers with no tensor")
    text = getattr(model.config, "text_config", model.config)
    longest = int(getattr(text, "max_position_embeddings", 0) or 512)
    if longest < EXAMPLE_SEQUENCE:
        raise Unsupported(f"max_position_embeddings {longest}: at least {EXAMPLE_SEQUENCE}")
    if getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "mpnet"):
        longest -= 2  # positions start behind the padding index
    if pooling is not None and "last_hidden_state" in outputs and "attention_mask" in names:
        module: torch.nn.Module = SentenceEmbedding(model, names, pooling)
        return Loaded(module, inputs, ("last_hidden_state", "sentence_embedding"), longest, prefix=_PREFIX)
    return Loaded(Named(model, names, outputs), inputs, outputs, longest, prefix=_PREFIX)


def _inputs(model: Any) -> tuple[InputSpec, ...]:
    config = model.config
    taken = inspect.signature(model.forward).parameters
    text = (Axis.BATCH, Axis.SEQUENCE)
    vocabulary = int(getattr(config, "vocab_size", 0) or getattr(getattr(config, "text_config", None), "vocab_size", 0) or 2)
    found: list[InputSpec] = []
    main = str(getattr(model, "main_input_name", "input_ids"))
    if "input_ids" in taken and (main == "input_ids" or vocabulary > 2):
        found.append(InputSpec("input_ids", torch.int64, text, low=min(3, vocabulary - 1), high=vocabulary))
        if "attention_mask" in taken:
            found.append(InputSpec("attention_mask", torch.int64, text, mask=True))
        if "token_type_ids" in taken and int(getattr(config, "type_vocab_size", 0) or 0) > 1:
            found.append(InputSpec("token_type_ids", torch.int64, text, high=int(config.type_vocab_size)))
        if "decoder_input_ids" in taken:
            found.append(InputSpec("decoder_input_ids", torch.int64, text, low=min(3, vocabulary - 1), high=vocabulary))
    if "pixel_values" in taken:
        found.append(InputSpec("pixel_values", torch.float32, (Axis.BATCH, *_image(config))))
    if not found:
        raise Unsupported(
            f"{type(model).__name__} takes {main!r}; models of text (input_ids) and images (pixel_values) are imported. "
            f"Export this one to .pt2 with torch.export.save and register that"
        )
    return tuple(found)


def _image(config: Any) -> tuple[int, int, int]:
    described = getattr(config, "vision_config", config)
    size = getattr(described, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return int(getattr(described, "num_channels", 3)), height, width
