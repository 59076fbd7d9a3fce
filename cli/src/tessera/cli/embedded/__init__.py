"""A whole platform as local processes: where its files lie (layout), what runs (state), keeping it running (supervisor)."""
