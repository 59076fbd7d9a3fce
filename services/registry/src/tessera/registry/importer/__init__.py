"""What runs inside the sandbox: untrusted model files in, a flat program, an ONNX export and blobs out. torch is imported only here.

`python -m tessera.registry.importer TASK.json`; see `task.py` for what goes in and comes out. Nothing here touches etcd, the
repository or a socket.
"""
