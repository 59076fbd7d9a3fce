"""The world outside: node agents and etcd's records."""
