"""The world as the gateway uses it: etcd, the scheduler, runtimes, metrics."""
