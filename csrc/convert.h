// Conversions of a block of at most kBlock numbers between memory and buffers of float32, for the instruction set of the
// file that includes this (csrc/cpu_*.cpp): with vectors of LANES numbers, or none if that is 1. Rules share them.
#pragma once

#include "lanes.h"
#include "processor.h"
#include "table.h"

#define SHARED static NOINLINE TARGET

namespace converting {

using namespace storage;
using namespace tables;

template <bool Signed, int N>
RULE_FN void decode(float* to, const void* from, int64_t at, float maximum, int64_t n) {
  const uint8_t* codes = static_cast<const uint8_t*>(from) + at;
  const float factor = Code<Signed>::decode_factor(maximum);
  int64_t i = 0;
  if constexpr (N > 1)
    for (; i + 4 * N <= n; i += 4 * N) lanes::decode<Signed, N>(to + i, codes + i, factor);
#pragma GCC ivdep
  for (; i < n; ++i) to[i] = Code<Signed>::decode(codes[i], factor);
}

// `is_signed` is false for states that cannot be negative.
SHARED void decode(bool is_signed, float* to, const void* from, int64_t at, float maximum, int64_t n) {
  is_signed ? decode<true, LANES>(to, from, at, maximum, n) : decode<false, LANES>(to, from, at, maximum, n);
}

SHARED float largest(const float* x, int64_t n) {
  uint32_t top = 0;
  for (int64_t i = 0; i < n; ++i) top = larger(top, x[i]);
  return float_of(top);
}

template <bool Signed, int N>
RULE_FN void encode(void* to, int64_t at, float maximum, const float* x, int64_t n, const uint32_t* noise,
                    uint32_t key) {
  const float factor = Code<Signed>::encode_factor(maximum);
  uint8_t* codes = static_cast<uint8_t*>(to) + at;
  int64_t i = 0;
  if constexpr (N > 1)
    if (bits_of(maximum) < kInfinity)
      for (; i + 4 * N <= n; i += 4 * N) lanes::encode<Signed, N>(codes + i, x + i, factor, noise + i, key);
#pragma GCC ivdep
  for (; i < n; ++i) codes[i] = uint8_t(Code<Signed>::encode(x[i], factor, (noise[i] ^ key) << kUnused) >> 24);
}

SHARED void encode(bool is_signed, void* to, int64_t at, float maximum, const float* x, int64_t n, const uint32_t* noise,
                   uint32_t key) {
  is_signed ? encode<true, LANES>(to, at, maximum, x, n, noise, key)
            : encode<false, LANES>(to, at, maximum, x, n, noise, key);
}

template <class From>
RULE_FN void expand(float* to, const void* from, int64_t at, int64_t n) {
  const From* x = static_cast<const From*>(from) + at;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) to[i] = load(x[i]);
}

template <class To>
RULE_FN void shrink(void* to, int64_t at, const float* x, int64_t n) {
  To* y = static_cast<To*>(to) + at;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) store(y[i], x[i]);
}

SHARED void expand(int kind, float* to, const void* from, int64_t at, int64_t n) {
  kind == kBfloat16 ? expand<bfloat16>(to, from, at, n) : expand<float16>(to, from, at, n);
}

SHARED void shrink(int kind, void* to, int64_t at, const float* x, int64_t n) {
  kind == kBfloat16 ? shrink<bfloat16>(to, at, x, n) : shrink<float16>(to, at, x, n);
}

// Adds to n parameters, in the type of the arithmetic, the rests that bfloat16 could not hold.
template <class Rest>
RULE_FN void add_rest(float* p, void* const* row, int64_t at, int64_t n) {
  const Rest* rest = static_cast<const Rest*>(row[kRest]) + at;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) p[i] = add(p[i], rest[i]);
}

SHARED void add_rest(int rounding, float* p, void* const* row, int64_t at, int64_t n) {
  rounding == kKahan ? add_rest<bfloat16>(p, row, at, n) : add_rest<lower16>(p, row, at, n);
}

template <class Rest>
RULE_FN void shrink_with_rest(void* const* row, int64_t at, const float* p, int64_t n) {
  bfloat16* to = static_cast<bfloat16*>(row[kParam]) + at;
  Rest* rest = static_cast<Rest*>(row[kRest]) + at;
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) store(to[i], rest[i], p[i]);
}

// The noise of the places in a block, and what even and odd slots take of it for 8-bit codes. Both need the noise of
// the block added, by an exclusive or.
struct Noise {
  alignas(64) uint32_t places[kBlock], of_codes[2][kBlock];

  RULE_FN Noise(uint32_t step, int64_t n) {
    for (uint32_t i = 0; i < n; ++i) {
      places[i] = noise_of_place(step, i);
      for (int slot = 0; slot < 2; ++slot) of_codes[slot][i] = noise_of_code(places[i], slot) >> kUnused;
    }
  }
};

SHARED void store_param(const Kinds& kinds, void* const* row, int64_t at, const float* p, int64_t n,
                        const Noise& noise, uint32_t key) {
  if (kinds.rounding == kStochastic) {
    bfloat16* to = static_cast<bfloat16*>(row[kParam]) + at;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) store(to[i], quiet_input(p[i]), noise_of_parameter(noise.places[i] ^ key));
  } else if (kinds.rounding == kKahan) {
    shrink_with_rest<bfloat16>(row, at, p, n);
  } else if (kinds.rounding == kSplit) {
    shrink_with_rest<lower16>(row, at, p, n);
  } else {
    shrink(kinds.parameter, row[kParam], at, p, n);
  }
}

}  // namespace converting
