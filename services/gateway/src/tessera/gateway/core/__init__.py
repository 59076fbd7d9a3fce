"""Pure parts of the gateway: no asyncio, no clocks, no sockets. Time arrives as an argument."""
