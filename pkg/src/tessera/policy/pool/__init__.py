"""How many warm, empty runtimes of each flavour wait on a node."""
