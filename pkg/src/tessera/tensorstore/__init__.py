"""The node's tensor store: one folder of blobs per trust domain, written by the node agent alone, mapped by runtimes.

Runtimes import `mapping` and `artifact` only; the store itself is `local`, its contract `interface`, its folder `mount`.
"""
