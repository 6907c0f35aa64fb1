// The first maximum of a run of numbers.
#pragma once
#include "dtypes.cuh"

// Whether v replaces the best so far: strictly larger, or the first NaN.
template <class A> DEVICE bool exceeds(A v, A best) { return v > best || (v != v && best == best); }
