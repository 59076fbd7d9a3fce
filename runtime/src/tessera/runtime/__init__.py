"""What runs beside a model: backends, batching, execution, validation, and the zygotes that runtimes are forked from.

No gRPC, no etcd, no network: two Unix sockets and a read-only tensor store (docs/seams.md, docs/states/runtime.md).
"""
