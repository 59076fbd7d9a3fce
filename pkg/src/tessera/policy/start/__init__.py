"""How an instance starts: which candidate, on which node, by which start path."""
