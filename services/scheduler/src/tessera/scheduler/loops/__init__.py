"""The asyncio shell: the election, the starts, the reconciling. Decisions are made in `core` and in `tessera.policy`."""
