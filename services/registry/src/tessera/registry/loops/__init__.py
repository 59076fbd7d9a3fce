"""The registry's asyncio shell: imports, variants, deletion. Decisions are in `core`, effects behind `ports`."""
