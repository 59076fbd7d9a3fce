"""Backend `aten`."""
