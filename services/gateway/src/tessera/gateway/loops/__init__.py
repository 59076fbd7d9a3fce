"""The asyncio shell around the core: requests, starts, and the watched state."""
