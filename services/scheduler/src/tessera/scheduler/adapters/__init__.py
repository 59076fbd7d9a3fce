"""The world outside: node agents, etcd's records, the repository, metrics, wire values."""
