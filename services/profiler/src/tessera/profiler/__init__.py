"""The profiler: measures variants on a node of each profile class, through the node agents, and stores what it found."""
