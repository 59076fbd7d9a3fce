"""Wire in, domain call, wire out: the Open Inference service, the gateway's own admin service, and the proxy to all others."""
