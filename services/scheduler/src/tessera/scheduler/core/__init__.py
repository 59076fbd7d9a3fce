"""The scheduler's logic without asyncio, clocks or I/O: time arrives as an argument, decisions leave as values."""
