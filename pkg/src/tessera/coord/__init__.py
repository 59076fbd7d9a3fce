"""Coordination: sessions, elections, watches and guarded writes over etcd; all keys; records as bytes.

Import from the modules (`tessera.coord.interface`, `tessera.coord.etcd`, `tessera.coord.view`, ...).
"""
