"""Adjectives of a tensor store: each wraps one and is one."""
