"""Backend `ort`."""
