"""The instrument behind ``tools/bench.py``: what is measured, how it is checked and timed, and against whom.

``case``         what a case is: one call in one line of text, its arrays, what it moves and computes, how it is checked
``arrays``       arrays of a backend, drawn from a seed
``families``     one module for each family: the cases of a set of shapes, and how each is made
``peers``        one module for each library that does the same work
``check``        holds the results of a case, and of each peer, against the float64 reference
``clock``        device events or wall time; CUDA graphs
``precompile``   what a run will need, compiled on all cores
``limits``       the ceilings of the machine, measured in the same run
``run``          the loop over cases: check, time, record, keep going
``records``      what is written for each case, and the summary
``picture``      the roofline
"""
