"""What is on disk, and the only place that knows how it lies there. Nothing here is read through pickle."""
