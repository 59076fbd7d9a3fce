"""What the node agent touches: processes, control channels, etcd, the scheduler, the repository, /proc."""
