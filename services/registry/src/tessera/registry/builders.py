"""Builders that ship with Tessera, for models that are named by a configuration alone. Weights come from the seed, or a file.

Part of the default allow-list. Imported inside the sandbox only (needs transformers).
"""

from __future__ import annotations

from typing import Any

from tessera.domain.errors import InvalidInput


def bert(hidden: int = 768, layers: int = 12, heads: int = 12, intermediate: int = 0, vocabulary: int = 30522, positions: int = 512) -> Any:
    """A `transformers.BertModel` without its pooler; the defaults are bert-base's (bert-small: hidden=512, layers=4, heads=8).

    `intermediate` 0 means four times `hidden`.

    Raises:
        InvalidInput: a size is not a positive whole number, or `heads` does not divide `hidden`.
    """
    import transformers

    sizes = {"hidden": hidden, "layers": layers, "heads": heads, "vocabulary": vocabulary, "positions": positions}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidInput(f"builder argument {name}", value, "must be a whole number from 1")
    if not isinstance(intermediate, int) or isinstance(intermediate, bool) or intermediate < 0:
        raise InvalidInput("builder argument intermediate", intermediate, "must be a whole number from 0")
    if hidden % heads:
        raise InvalidInput("builder argument heads", heads, f"must divide hidden ({hidden})")
    config = transformers.BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate or 4 * hidden,
        vocab_size=vocabulary,
        max_position_embeddings=positions,
    )
    return transformers.BertModel(config, add_pooling_layer=False)


def transformer(architecture: str, config: dict[str, Any] | None = None) -> Any:
    """A model of the installed transformers by class name, as in `architecture="ViTModel"`, with fields of its configuration.

    Raises:
        InvalidInput: no such class, or a field that its configuration refuses.
    """
    import transformers

    found: Any = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    if not (_is_model(found) and getattr(found, "config_class", None)):
        raise InvalidInput("builder argument architecture", architecture, "must be a model class of the installed transformers")
    if config is not None and not isinstance(config, dict):
        raise InvalidInput("builder argument config", config, "must be a JSON object")
    if "auto_map" in (config or {}):
        raise InvalidInput("builder argument config", "auto_map", "code that comes with a model is never run")
    return found(found.config_class(**(config or {})))


def _is_model(found: Any) -> bool:
    import transformers

    return isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
