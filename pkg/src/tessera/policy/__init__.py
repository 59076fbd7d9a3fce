"""Decisions as pure functions: `start` (node and start path), `placement` (bytes already there), `scaling` (idle keep-alive), `variant`
(which one answers), `instance` (which of its instances), `load` (overloaded, interfered), `autoscaling` (how many instances of which
variant), `nodes` (how many nodes), `reclaim` (which blobs go), `pool` (empty runtimes that wait).

Each family is a folder: `base.py` holds the interface and its values, one file holds one policy, `registry.py` maps names to
factories. A policy proposes and never acts; it knows only `tessera.domain`, and time reaches it as an argument.
"""
