"""States, chunks, places and checkpoints of batch jobs. No asyncio, no clocks, no I/O."""
