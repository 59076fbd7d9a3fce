"""Pure decisions of the node agent: no asyncio, no clocks, no I/O. Time arrives as an argument."""
