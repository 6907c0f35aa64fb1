"""The parts of ``tools/inspect_kernel.py``: what a compiled kernel takes, and what it must keep to."""
