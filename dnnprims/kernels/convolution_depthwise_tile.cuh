// Depthwise convolutions of packs: a block has neighbouring channels of neighbouring strips, of several images where these
// are narrow, and all its threads go down together. The rows that they see come to shared memory by copies of 16 bytes, once
// for all strips, so that no thread asks for what its neighbour has asked for.
#pragma once
#include "convolution_depthwise.cuh"

// Threads of a block, and blocks that a multiprocessor has room for: filters of 5 taps a side take 168 registers.
template <int TAPS> constexpr int MOST_THREADS = TAPS == 5 ? 128 : 256;
template <int TAPS> constexpr int TILE_RESIDENT = TAPS == 5 ? 3 : 2;
constexpr int PITCH = 128, CHUNK = 16;          // bytes of a position of a row: its channels in a block; of a copy
// Rows that have places, of which AT_ONCE are worked on, of images and of filters' gradients.
constexpr int IMAGE_RING = 6, AT_ONCE = 2, FILTER_RING = 3;

// Where a block and a thread are: the block's first image and the thread's; positions and rows of results, from p.begin on.
struct Tile {
  int lanes, strips, images, lane, strip, image, first, n, w, begin, end;

  template <class P>
  DEVICE Tile(const P& p, i64 index, i64 units, int wide) : lanes((int)p.lanes), strips((int)p.strips), images((int)p.images) {
    const int slot = (int)threadIdx.x / lanes;
    lane = (int)threadIdx.x - slot * lanes, image = slot / strips, strip = slot - image * strips;
    w = (int)split_off(index, p.tiles_w) * strips * wide;
    begin = (int)(split_off(index, p.segments) * p.walk);
    end = begin + p.walk < units ? begin + (int)p.walk : (int)units;
    first = (int)(index * images), n = first + image;
  }
};

// The rows of a source that the strips of a block see, ADVANCE positions from one strip to the next, SPAN seen by each; zeros
// where they are outside of the image.
template <class T, int VEC, int SPAN, int ADVANCE, int RING> struct TileRows {
  typedef pack<T, VEC> Pack;
  static constexpr int STEP = PITCH / (int)sizeof(Pack);     // packs from a position to the next
  static constexpr int FED = CHUNK / (int)sizeof(Pack);      // threads that a chunk feeds
  static constexpr int COPIES = (SPAN + FED - 1) / FED, ELEMENTS = CHUNK / (int)sizeof(T), EXISTS = 1 << COPIES;
  unsigned char *room, *places;  // the same, as what is read and as what is copied to
  const T* at;  // in row h, which is the next one to be asked for
  i64 down;
  int h, end, asked, from[COPIES], to[COPIES];
  u32 bytes, own, copies;  // the last one: a bit for each copy that is there, and EXISTS times one for each

  // `image` is the first channel of the block in its first image, of which there are `images` more in the batch.
  DEVICE TileRows(unsigned char* room, const Tile& tile, const T* image, const Walk& walk, const Extent& extent, i64 channels,
                  i64 images, i64 h, i64 w, i64 wanted)
      : room(room), places(room), at(image + (h * walk.h + w * walk.w)), down(walk.h), h((int)h),
        end((int)(h + wanted < extent.h ? h + wanted : extent.h)), asked(0), copies(0) {
    const int across = (tile.strips - 1) * ADVANCE + SPAN, chunks = tile.lanes / FED, all = tile.images * across * chunks;
    bytes = tile.images * across * PITCH;
    own = (tile.image * across + tile.strip * ADVANCE) * PITCH + tile.lane * (int)sizeof(Pack);
#pragma unroll
    for (int k = 0; k < COPIES; ++k) {
      const int i = (int)threadIdx.x + k * (int)blockDim.x, position = i / chunks, chunk = i - position * chunks;
      const int outer = position / across, column = position - outer * across;
      copies |= i < all ? EXISTS << k : 0;
      to[k] = position * PITCH + chunk * CHUNK;
      from[k] = outer * (int)walk.outer + column * (int)walk.w + chunk * ELEMENTS;
      copies |= (u32)(outer < images && chunk * ELEMENTS < channels && within(w + column, extent.w)) << k;
    }
    keep_here(copies), keep_here(bytes), keep_here(own), keep_here(places);  // or they are made again for each row
  }
  DEVICE void ask() {
    const u32 seen = h >= 0 && h < end ? copies : 0;
    unsigned char* row = places + asked * bytes;
#pragma unroll
    for (int k = 0; k < COPIES; ++k)
      if (copies & EXISTS << k) copy_async_or_zeros(row + to[k], at + from[k], (seen & 1u << k) != 0);
    at += down, ++h, asked = asked + 1 < RING ? asked + 1 : 0;
  }
  // The row that was asked for so many before what will be asked for next; its position b is STEP * b further.
  DEVICE const Pack* take(int before = RING) {
    const int place = asked + RING - before;
    return reinterpret_cast<const Pack*>(room + ((place < RING ? place : place - RING) * bytes + own));
  }
};

// What was committed but for the last PENDING is there, for all threads, and what was taken before is free.
template <int PENDING> DEVICE void await_rows() { await_copies<PENDING>(), __syncthreads(); }
