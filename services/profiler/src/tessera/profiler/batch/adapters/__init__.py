"""The world outside of batch jobs: files by fsspec, their formats, etcd's records, gateways."""
