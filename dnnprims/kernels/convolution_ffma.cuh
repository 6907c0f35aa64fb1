// The tile of an implicit product with fused multiply-adds: who has which sums, slices in shared memory, and the way out.
#pragma once
#include "convolution_implicit.cuh"

// The threads of a block and the places of each in the tile: a warp has 4 x 8 threads, each rows and columns in fours. Of
// two halves of a warp, each brings 128 bytes of columns and 32 of rows from shared memory at a time.
template <class T, int ROWS, int COLUMNS, int MOST_DOWN = 8> struct Tile {
  typedef acc_t<T> A;
  static constexpr bool WIDE = sizeof(A) == 8;
  static constexpr int DOWN = WIDE ? 4 : MOST_DOWN, ACROSS = WIDE ? 4 : 8;  // rows and columns of a thread
  static constexpr int DEPTH = WIDE ? 16 : 8;                               // terms of a slice
  static constexpr int THREADS = ROWS * COLUMNS / (DOWN * ACROSS), BLOCKS = THREADS == 64 ? 48 / DOWN : 2;
  static constexpr int ROW_FOURS = DOWN / 4, COLUMN_FOURS = ACROSS / 4, WARPS_ACROSS = COLUMNS / (32 * COLUMN_FOURS);
  static constexpr int ROW_PACKS = ROWS * DEPTH / 4 / THREADS, COLUMN_PACKS = COLUMNS * DEPTH / 4 / THREADS;
  static constexpr int PAD = 4, WIDTH = COLUMNS, PARTS = ROW_FOURS, ROWS_OF_PART = ROWS / PARTS;
  struct Buffer {
    alignas(16) A rows[DEPTH][ROWS + PAD];
    alignas(16) A columns[DEPTH][COLUMNS + PAD];
  };
  union Shared {
    Buffer buffer[2];
    alignas(16) A sums[ROWS_OF_PART][COLUMNS + PAD];  // sixteen rows of each warp
  };
  // Four rows from 16 * i on, four columns from 32 * j on.
  static DEVICE int row(int i) { return threadIdx.x / 32 / WARPS_ACROSS * 4 * DOWN + i * 16 + lane_row(); }
  static DEVICE int column(int j) { return threadIdx.x / 32 % WARPS_ACROSS * 8 * ACROSS + j * 32 + threadIdx.x % 8 * 4; }
  static DEVICE int lane_row() { return threadIdx.x % 32 / 8 * 4; }
  static DEVICE int row_in_part() { return threadIdx.x / 32 / WARPS_ACROSS * 16 + lane_row(); }
  // Row of the tile that row `at` of the sums number `part` is.
  struct PartRow {
    int part;
    DEVICE int operator()(int at) const { return at / 16 * 4 * DOWN + part * 16 + at % 16; }
  };
  static DEVICE void multiply(A (&sum)[DOWN][ACROSS], const Buffer& in) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
      A left[DOWN], right[ACROSS];
#pragma unroll
      for (int i = 0; i < ROW_FOURS; ++i) take_four(left + 4 * i, &in.rows[k][row(i)]);
#pragma unroll
      for (int j = 0; j < COLUMN_FOURS; ++j) take_four(right + 4 * j, &in.columns[k][column(j)]);
#pragma unroll
      for (int i = 0; i < DOWN; ++i)
#pragma unroll
        for (int j = 0; j < ACROSS; ++j) sum[i][j] = fma(left[i], right[j], sum[i][j]);
    }
  }
};

// Four to shared memory: along the terms of one line, or along four lines of one term.
template <class T, int WIDTH> DEVICE void put_terms(acc_t<T> (*tile)[WIDTH], int term, int line, const Four<T>& v) {
#pragma unroll
  for (int i = 0; i < 4; ++i) tile[term + i][line] = to_acc(v.lane[i]);
}
template <class T, int WIDTH> DEVICE void put_lines(acc_t<T> (*tile)[WIDTH], int term, int line, const Four<T>& v) {
  acc_t<T> wide[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) wide[i] = to_acc(v.lane[i]);
  store_four(&tile[term][line], wide);
}

// The sums of a block through shared memory to their results, sixteen rows of each warp at a time.
template <class Place, class Finish, class A>
DEVICE void hand_over(typename Place::Shared& shared, A (&sum)[Place::DOWN][Place::ACROSS], const Finish& finish,
                      int rows, int columns) {
#pragma unroll 1
  for (int part = 0; part < Place::PARTS; ++part) {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < Place::COLUMN_FOURS; ++j) {
        A four[4];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          four[k] = sum[i][4 * j + k];
#pragma unroll
          for (int other = 1; other < Place::PARTS; ++other)
            if (part == other) four[k] = sum[4 * other + i][4 * j + k];
        }
        store_four(&shared.sums[Place::row_in_part() + i][Place::column(j)], four);
      }
    __syncthreads();
    const typename Place::PartRow row_of{part};
    deliver<Place::ROWS_OF_PART, Place::WIDTH, Place::WIDTH + Place::PAD, Place::THREADS>(&shared.sums[0][0], finish, rows,
                                                                                         columns, row_of);
  }
}

template <class A, int DOWN, int ACROSS> DEVICE bool any_nan(const A (&sum)[DOWN][ACROSS]) {
  bool found = false;
#pragma unroll
  for (int i = 0; i < DOWN; ++i)
#pragma unroll
    for (int j = 0; j < ACROSS; ++j) found |= sum[i][j] != sum[i][j];
  return found;
}
