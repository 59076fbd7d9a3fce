"""Backend `identity`."""
