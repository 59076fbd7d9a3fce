"""When instances end (and, where objectives ask for it, how many there are)."""
