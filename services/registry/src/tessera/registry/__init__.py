"""The registry: takes models as uploads, imports them in a sandbox, stores them by digest, and has their variants made."""
