// Images of three spatial axes in any layout: where an element lies, and which taps of a window see it.
#pragma once
#include "dtypes.cuh"

struct Spatial {
  i64 d, h, w;
};
struct Steps {
  i64 outer, channel, d, h, w;
};

struct Place {
  i64 outer, channel;
  Spatial at;
};

DEVICE i64 taken(i64& index, i64 extent) {
  const i64 outer = quotient(index, extent), here = index - outer * extent;
  index = outer;
  return here;
}
// Element `index` of (outer, channels, extent) or, with `last`, of (outer, extent, channels).
DEVICE Place place_of(i64 index, i64 channels, const Spatial& extent, bool last) {
  Place place;
  if (last) place.channel = taken(index, channels);
  place.at.w = taken(index, extent.w);
  place.at.h = taken(index, extent.h);
  place.at.d = taken(index, extent.d);
  if (!last) place.channel = taken(index, channels);
  place.outer = index;
  return place;
}

DEVICE i64 offset(const Steps& steps, const Spatial& at) { return at.d * steps.d + at.h * steps.h + at.w * steps.w; }
DEVICE i64 offset(const Steps& steps, const Place& place) {
  return place.outer * steps.outer + place.channel * steps.channel + offset(steps, place.at);
}

// Where tap r lies for output o; the result is whether that is in the image.
DEVICE bool sees(i64 o, i64 r, i64 stride, i64 dilation, i64 padding, i64 extent, i64& i) {
  i = o * stride - padding + r * dilation;
  return i >= 0 && i < extent;
}
// The output for which tap r lies at i; the result is whether there is one.
DEVICE bool seen_by(i64 i, i64 r, i64 stride, i64 dilation, i64 padding, i64 extent, i64& o) {
  const i64 from = i + padding - r * dilation;
  if (from < 0) return false;
  o = quotient(from, stride);
  return o * stride == from && o < extent;
}
