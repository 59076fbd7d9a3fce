"""Which instance of a variant gets a request. Pure: instances with their queues in, one of them out."""
