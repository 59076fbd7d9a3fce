"""Whether an instance is active, overloaded or interfered with (docs/states/load.md), and where its load shall go then."""
