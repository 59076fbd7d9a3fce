"""Fencing by the scheduler leader's term: an older leader is never obeyed.

The newest term seen outlives the agent in a file; this module only compares. A term of another etcd cluster counts as newer: the
old cluster is gone.
"""

from __future__ import annotations

from tessera.domain.errors import StaleTerm
from tessera.domain.ids import Term


class Fence:
    """The newest term seen. `durable` is the newest one that is known to be on disk."""

    def __init__(self, term: Term | None = None) -> None:
        self._newest = term
        self._durable = term

    @property
    def newest(self) -> Term | None:
        return self._newest

    @property
    def durable(self) -> bool:
        return self._durable == self._newest

    def admit(self, offered: Term) -> bool:
        """Takes the term in; True when it is newer than every term before, so that it must be made durable before anyone is answered.

        Raises:
            StaleTerm: a newer one of the same cluster was seen.
        """
        if self._newest is not None:
            if offered == self._newest:
                return False
            if offered.is_older_than(self._newest):
                raise StaleTerm(f"term {offered.revision} is older than term {self._newest.revision}, which this node has obeyed")
        self._newest = offered
        return True

    def persisted(self, term: Term) -> None:
        """The file holds `term` now."""
        self._durable = term
