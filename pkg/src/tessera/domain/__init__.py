"""Values that every part of Tessera shares: ids, records, states, error kinds. Frozen dataclasses, standard library only.

Import from the modules (`tessera.domain.ids`, `tessera.domain.errors`, ...); this package re-exports nothing, so that a process
loads only what it names.
"""
