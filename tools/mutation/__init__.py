"""The parts of ``tools/mutate.py``: plant small mistakes in kernels and host code, and see whether the tests notice.

``mutant``         what a mutant is: a file, a place, what stands there instead
``cuda_text``      mistakes in CUDA text, found in its tokens
``python_text``    mistakes in Python, found in its syntax tree
``catalogue``      which files, which mistakes are left out and why, and the seeded choice among the rest
``suite``          the tests that may kill a mutant, the nearest and cheapest first
``cases``          a program: the conformance cases of some families, up to the first that fails
``overlay``        a copy of the project with one mutant in it, and one command in it
``campaign``       many mutants at once
``records``        what became of them: one line each, and the summary
"""
