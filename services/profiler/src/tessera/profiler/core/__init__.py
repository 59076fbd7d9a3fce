"""What is to be measured, and how measurements become a record. No asyncio, no clocks, no I/O."""
