"""An S3 server for tests: moto's, on loopback, with a bucket `models`. Real HTTP, real botocore; only the storage is memory."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import fsspec
from moto.server import ThreadedMotoServer

BUCKET = "models"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
"""What a client's environment has; set in this process while the server runs."""


@contextmanager
def running_s3() -> Iterator[str]:
    """Its endpoint url."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        with mock.patch.dict(os.environ, CREDENTIALS):
            host, port = server.get_host_and_port()
            endpoint = f"http://{host}:{port}"
            # The storage is this process's, not the server's: without this a second server begins with the first one's objects.
            urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
            files = fsspec.filesystem("s3", endpoint_url=endpoint)
            files.mkdir(BUCKET)
            yield endpoint
            files.clear_instance_cache()
    finally:
        server.stop()
