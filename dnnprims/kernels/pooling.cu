// Pooling: the largest or the mean of what lies under a window that moves over an image, and the gradient.
//
// With i(o, r) = o * stride - before + r along each spatial axis, r the taps of the window, positions outside left out:
// Forward    max   y[o] = max_r x[i(o, r)], and the first r, row by row, that attains it; a NaN is larger than every
//                  number, the first NaN wins
//            mean  y[o] = sum_r x[i(o, r)] / count, of the positions in the image or of all
//            y = alpha result + beta y
// Backward   dx[i] = sum dy[o] over the windows o that have chosen i; of a mean, sum dy[o] / count over all that have it
//
// Shapes     x, dx (n, c, d, h, w), y, dy (n, c, o, p, q) of T in either layout; indices of y's shape, u8 where a window
//            has no more than 256 taps, else int.
// Plan       *_packed   channels last, two axes: a thread has a pack of channels of a window, or of some one below the
//                       other; backward of tiles of dx that the strides span, whose windows it reads once. Maxima of
//                       2 x 2 and 3 x 3 are unrolled, with what lies next to an edge in place of what lies beyond, and
//                       share the rows that two of them have; means of 3 x 3 are where they reach over no edge.
//            *_lines    channels first: a thread has a pack of a row, in which half as many windows of stride 2 lie, and
//                       goes down: what the columns of a row come to serves both windows that have the row, and the
//                       next rows are asked for before these are put together.
//            *_whole_*  means of whole images: backward, and channels last forward, too.
//            *_rows     channels first, any window: rows of a plane, or planes, go through shared memory, where they may
//                       begin anywhere, while memory sees packs alone. Backward has windows there, too.
//            the plain  any steps, three axes: a thread an element.
//            One pass over memory each; what windows share comes from the caches.
// Numerics   maxima are moved, not computed; sums in acc_t<T> in the order of the taps, in *_lines row by row, times the
//            rounded reciprocal of the count. Gradients are gathered, window by window in their order, rounded once: no
//            atomics, the same bits each time. Maxima of 16 bits hand on words of two numbers: what one window gives stays
//            as it is, what two give is one sum of the type, so that it is rounded once, too.
// Cost       (image + output) sizeof(T) bytes, and output bytes for the indices, each way. A tap of two 16-bit numbers takes
//            five instructions (largest.cuh), of a float 4: a maximum of 3 x 3 as many as a copy has time for.
// Measured   on an NVIDIA H200, 2026-11-28, a graph of each call between events, share of a copy of 4.27 TB/s,
//            256x64x112x112, 3 x 3, stride 2 (in brackets before rows were shared and words handed on):
//                                 maximum with indices / without / backward       mean / backward
//              NHWC bfloat16      0.96 (.88) / 0.97 (.86) / 0.87 (.81)            0.91 / 0.87 (.85)
//                   float16       0.96 (.85) /      (.85) / 0.87 (.81)            0.92 / 0.87 (.83)
//                   float32       0.99 (.97) /      (.98) / 0.91 (.90)            0.98 / 0.91
//              NCHW bfloat16      0.87 (.75) / 0.89 (.76) / 0.81                  0.90 / 0.88
//                   float16       0.87 (.75) /      (.75) / 0.81                  0.90 (.75) / 0.84
//                   float32       0.99 (.96) /      (.98) / 0.95                  0.96 / 0.94
//            64x64x224x224, 2 x 2, bfloat16 0.93 to 1.01. 256x2048x7x7, mean of the whole, backward: NHWC bfloat16 0.75,
//            float32 0.86 (0.81 by blocks of 32 packs side by side), NCHW bfloat16 0.54, float32 0.78: 16 to 32 us, of
//            which a launch takes 2 to 3.
//            What was missed waited for instructions, memory moves each byte once. ncu, float16, forward: 71 M instructions
//            (NCHW, 49 % of the issue slots, 59 % of the ALU; 116 M, 66 % and 72 % before) and 49 M (NHWC, 37 %, 48 %),
//            DRAM at 77 and 88 %, all stalls but those for loads below 2 of 14 cycles. Backward, maximum: NHWC 61 M
//            instructions (41 %; 116 M, 71 % before), DRAM 77 %; NCHW 98 M (61 %; ALU 50 %), DRAM 70 %, occupancy 50 %,
//            7.3 cycles of stalls for loads: what is missed of 0.85 there is latency, as a thread has one tile, whose
//            gradients and indices come in pieces of 8 and 4 bytes. Four tiles below each other in a thread (136 in place of
//            244 instructions each) took 0.79 in place of 0.81, of means 0.83 for 0.84, of float32 0.82 for 0.95. Two numbers
//            of an address worked out anew for each store, for lack of registers, were a quarter of the instructions of
//            NHWC backward (`kept` in ptx.cuh). Means of 3 x 3, NHWC, with shared rows had 0.66 in place of 0.92 (ncu:
//            94 M instructions, 52 %, DRAM 60 %).
//            *_rows take an index of its own for each element of a window, and backward an address for each element of a
//            tile: 3 x 3 with stride 1 has 0.17 forward, 0.08 backward; a mean of 3 x 3 with stride 2 had 0.07 there.
#include "pooling_lines.cuh"
#include "pooling_packed.cuh"
#include "pooling_plain.cuh"
#include "pooling_rows.cuh"
#include "pooling_whole.cuh"
