"""In which order a tensor store gives up blobs that nobody holds. Pure: plain values in, an order out."""
