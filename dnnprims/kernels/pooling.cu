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
//                       2 x 2 and 3 x 3, and means of 3 x 3, are unrolled where they reach over no edge.
//            *_lines    channels first: a thread has a pack of a row, in which half as many windows of stride 2 lie, and
//                       goes down: what the columns of a row come to serves both windows that have the row.
//            *_whole_*  means of whole images: backward, and channels last forward, too.
//            *_rows     channels first, any window: rows of a plane, or planes, go through shared memory, where they may
//                       begin anywhere, while memory sees packs alone. Backward has windows there, too.
//            the plain  any steps, three axes: a thread an element.
//            One pass over memory each; what windows share comes from the caches.
// Numerics   maxima are moved, not computed; sums in acc_t<T> in the order of the taps, in *_lines row by row, times the
//            rounded reciprocal of the count. Gradients are gathered, window by window in their order, rounded once: no
//            atomics, the same bits each time.
// Cost       (image + output) sizeof(T) bytes, and output bytes for the indices, each way. A tap of a 16-bit number takes
//            2.5 instructions (largest.cuh), of float 4: a maximum of 3 x 3 as many as a copy has time for.
// Measured   on an NVIDIA H200, 2026-11-28, a graph of each call between events, share of a copy of 4.27 TB/s,
//            256x64x112x112, 3 x 3, stride 2:
//                                 maximum with indices / without / backward   mean / backward
//              NHWC bfloat16      0.88 / 0.86 / 0.81                          0.90 / 0.85
//                   float16       0.87 / 0.85 / 0.81                          0.92 / 0.83
//                   float32       0.97 / 0.98 / 0.90                          0.98 / 0.91
//              NCHW bfloat16      0.75 / 0.76 / 0.82                          0.89 / 0.88
//                   float16       0.75 / 0.75 / 0.81                          0.75 / 0.85
//                   float32       0.96 / 0.98 / 0.95                          1.00 / 0.94
//            64x64x224x224, 2 x 2, bfloat16 0.94 to 1.02. 256x2048x7x7, mean of the whole, forward / backward: NHWC bfloat16
//            0.64 / 0.74, float32 0.83 / 0.83, NCHW bfloat16 0.46 / 0.54, float32 0.64 / 0.76: 25 to 30 us, of which a
//            launch takes 2 to 3. With four threads for the positions of a plane NCHW forward had 0.32 and 0.67.
//            What is missed of 0.85 waits for instructions, not for memory, which moves each byte once (ncu: 490 to
//            560 MB): NCHW forward of bfloat16 took 116 M of them with a maximum, 66 % of the issue slots and 72 % of the
//            ALU, 127 M with a mean (79 %), backward 111 M (66 %) and 120 M (78 %); NHWC backward 116 M with a maximum
//            (71 %; 69 % of the ALU) and 122 M with a mean (77 %), at 43 % of the warps. Since then rows are shared by
//            windows, shares of means are divided for at the edges alone, and the first gradient of an element is not
//            added to 0: the mean went from 0.74 to 0.89 and 0.78 to 0.88 (NCHW), 0.75 to 0.81 (NHWC backward), the maximum
//            backward from 0.78 to 0.82; the maximum forward stayed. Four tiles below each other, NHWC backward, took the mean
//            from 0.81 and 0.72 to 0.85 and 0.83 (float32 0.94 to 0.91), the maximum of float32 from 0.82 to 0.90. *_rows take an index of its own for each element
//            of a window, and backward an address for each element of a tile: 3 x 3 with stride 1 has 0.17 forward,
//            0.08 backward; a mean of 3 x 3 with stride 2 had 0.07 there.
#include "pooling_lines.cuh"
#include "pooling_packed.cuh"
#include "pooling_plain.cuh"
#include "pooling_rows.cuh"
#include "pooling_whole.cuh"
