"""The node agent: sole writer of the tensor store of one node and trust domain, owner of its runtimes."""
