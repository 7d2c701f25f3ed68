"""How good is a set: fresh networks trained on it, and what they then do on images they never saw."""
