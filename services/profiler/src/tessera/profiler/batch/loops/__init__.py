"""The asyncio shell of batch jobs: taking them in, working on one at a time, sending, pausing."""
