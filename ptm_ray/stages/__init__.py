"""One process, no Ray: from settings to objects, the loops, checkpoint and resume.

What Ray's workers do is written here as ordinary functions that a test calls without a cluster.
"""
