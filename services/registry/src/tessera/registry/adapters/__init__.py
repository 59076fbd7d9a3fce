"""The registry's outside: etcd, the repository, the sandbox, node agents, the disk."""
