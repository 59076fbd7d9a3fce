"""Pure rules of the registry: what may be uploaded, what is the same, what refers to what, which step follows."""
