"""When the pool of nodes grows, and when it shrinks."""
