"""Which node suits a variant: by the bytes that are already in its tensor store."""
