"""The registry's asyncio shell: imports, variants, deletion, presence. Decisions are in `core`, effects behind `ports`."""
