"""Batch jobs: offline requests from an input URL to an output URL (docs/states/batch.md). Knows nothing of the rest of the profiler."""
