"""sentence-transformers folders: pooling and normalising computed inside the graph, as a second output `sentence_embedding`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tessera.registry.importer.layout import read_json


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token states become one vector: mode "mean" (over unmasked tokens) or "cls" (the first token)."""

    mode: str
    normalize: bool


def read_pooling(folder: Path) -> Pooling | None:
    """What modules.json says, or None where there is none or it has a step that is not computed here."""
    if not (folder / "modules.json").is_file():
        return None
    modules = read_json(folder / "modules.json", "modules.json")
    if not isinstance(modules, list) or not all(isinstance(entry, dict) for entry in modules):
        return None
    kinds = [str(entry.get("type", "")).rpartition(".")[2] for entry in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        return None
    path = str(modules[1].get("path", ""))
    if "/" in path or "\\" in path or path in ("", ".", ".."):
        return None
    settings = read_json(folder / path / "config.json", f"{path}/config.json")
    if not isinstance(settings, dict):
        return None
    chosen = [name for name, on in settings.items() if name.startswith("pooling_mode") and on is True]
    named = str(settings.get("pooling_mode", ""))  # newer folders name the mode instead of switching it on
    modes = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "mean": "mean", "cls": "cls"}
    wanted = chosen if chosen else [named]
    if len(wanted) != 1 or wanted[0] not in modes:
        return None
    return Pooling(modes[wanted[0]], "Normalize" in kinds)


class SentenceEmbedding(torch.nn.Module):  # type: ignore[misc] # torch is not followed
    """Token states of shape (batch, sequence, width) and one vector per row of shape (batch, width), both float32."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self._names = inputs
        self._mask = inputs.index("attention_mask")
        self._pooling = pooling

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.model(**dict(zip(self._names, tensors, strict=True))).last_hidden_state
        if self._pooling.mode == "cls":
            pooled = states[:, 0]
        else:
            mask = tensors[self._mask].unsqueeze(-1).to(states.dtype)
            pooled = (states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1e-9)
        if self._pooling.normalize:
            pooled = torch.nn.functional.normalize(pooled, p=2.0, dim=1)
        return states, pooled
