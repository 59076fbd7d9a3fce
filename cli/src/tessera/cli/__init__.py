"""The `tessera` command. Knows the SDK and the shared packages, no service; loads neither torch nor a backend."""
