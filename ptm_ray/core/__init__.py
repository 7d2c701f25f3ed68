"""The mathematics of progressive trajectory matching: tensors and settings in, tensors out.

Needs torch alone; numba, where it is there, makes it faster on a CPU. Touches no file of a run's (what numba compiles
is kept in its own cache, see `nets.compiling`), no clock and no global random state: every draw comes from a generator
that the caller passes, which is what makes a run resumable bit for bit and testable against float64.
"""
