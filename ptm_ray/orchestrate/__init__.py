"""The same stages on Ray. The only package that imports it."""
