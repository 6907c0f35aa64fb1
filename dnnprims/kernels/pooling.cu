#include "pooling_packed.cuh"
#include "pooling_plain.cuh"
#include "pooling_rows.cuh"
