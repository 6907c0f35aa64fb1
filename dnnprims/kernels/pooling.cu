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
//                       other; backward of a tile of dx that the strides span, whose windows it reads once. Maxima of
//                       2 x 2 and 3 x 3 are unrolled where they reach over no edge.
//            *_lines    channels first: a thread has a pack of a row, in which half as many windows of stride 2 lie.
//            *_rows     channels first, any window: rows of a plane, or planes, go through shared memory, where they may
//                       begin anywhere, while memory sees packs alone. Backward has windows there, too.
//            the plain  any steps, three axes: a thread an element.
//            One pass over memory each; what windows share comes from the caches.
// Numerics   maxima are moved, not computed; sums in acc_t<T> in the order of the taps, times the rounded reciprocal of
//            the count. Gradients are gathered, window by window in their order, rounded once: no atomics, the same bits
//            each time.
// Cost       (image + output) sizeof(T) bytes, and output bytes for the indices, each way. A tap of a 16-bit number takes
//            2.5 instructions (largest.cuh), of float 4: a maximum of 3 x 3 as many as a copy has time for.
// Measured   on an NVIDIA H200, 2026-11-28, share of a copy; forward with indices / without / backward:
//              256x64x112x112, 3 x 3, stride 2   NHWC bfloat16 0.86 / 0.84 / 0.71, float32 0.97 / 0.97 / 0.82
//                                                NCHW bfloat16 0.68 / 0.64 / 0.77, float32 0.92 / 0.89 / 0.92
//              64x64x224x224, 2 x 2              0.91 to 1.02, both layouts and types
//              256x2048x7x7, mean of the whole   NHWC bfloat16 0.50 / 0.67, float32 0.65 / 0.82 (forward / backward)
//                                                NCHW bfloat16 0.46 / 0.17, float32 0.64 / 0.23
//              256x512x14x14, 2 x 2, bfloat16    NHWC 0.68 / 0.65 / 0.71, NCHW, whose rows are no packs, 0.44 / 0.43 / 0.23
//            By ncu, bfloat16 3 x 3 waits for instructions, not for memory, which moves 540 to 560 MB once: of the issue
//            slots *_packed take 54 % forward and 73 % backward, *_lines 63 % and 59 %, with 37 to 57 % of the warps there;
//            backward spends 660 instructions on 32 elements, half of them to take bytes and halves out of words. The mean
//            of 7 x 7 has but 256 blocks, 21 % of the warps, and takes 16 us in the kernel of 25 with the launch. *_rows
//            take an index of its own for each element of a window, and backward an address for each element of a tile:
//            3 x 3 with stride 1 has 0.17 forward, 0.08 backward.
#include "pooling_lines.cuh"
#include "pooling_packed.cuh"
#include "pooling_plain.cuh"
#include "pooling_rows.cuh"
