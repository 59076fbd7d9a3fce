"""Faults on demand, at named places: what the fault tests use to make the rare happen.

In code: `failpoint.hit("registry.before_commit")` or `await failpoint.async_hit(...)`. Outside:
`TESSERA_FAILPOINTS="registry.before_commit=1*off->1*error(unavailable: gone);agent.fetch=delay(0.5)"`, or `active(...)` in a test.

    points  = point *( ";" point )
    point   = name "=" term *( "->" term )
    term    = [ count "*" ] action           without a count: for ever
    action  = "off" | "error(" [kind ":"] message ")" | "oserror(" name or number ")" | "delay(" seconds ")" | "kill"

After its last counted term a point is off. `error` raises the domain error of that kind (`internal` by default), `oserror` the
system's (`oserror(ENOSPC)`), `kill` ends the process at once with code 137, as a kill -9 would. With no point set a hit costs one
check of a module variable.
"""

from tessera.failpoint._failpoint import active, async_hit, clear, configure, count, hit

__all__ = ["active", "async_hit", "clear", "configure", "count", "hit"]
