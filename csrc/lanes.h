// 8-bit states, 4 N elements at a time in vectors of N words: the bits of storage.h's functions of one element, in half of
// the instructions that compilers make of those. Most are on half words, two elements in each word.
#pragma once

#include <utility>

#include "storage.h"

namespace lanes {

using namespace storage;

template <class T, int N>
struct Vector {
  typedef T Type __attribute__((vector_size(4 * N)));  // of GCC and Clang; operators work on each number
};
template <int N>
using Words = typename Vector<uint32_t, N>::Type;
template <int N>
using Signed = typename Vector<int32_t, N>::Type;
template <int N>
using Floats = typename Vector<float, N>::Type;
template <int N>
using Halves = typename Vector<uint16_t, N>::Type;
template <int N>
using Bytes = typename Vector<uint8_t, N>::Type;

template <class V>
RULE_FN V read(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
RULE_FN void write(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// The numbers of v as matrices of rows x columns one after the other, each transposed.
template <int rows, int columns, class V, int... i>
RULE_FN V transposed(V v, std::integer_sequence<int, i...>) {
  constexpr int size = rows * columns;
#ifdef __clang__
  return __builtin_shufflevector(v, v, (i / size * size + i % rows * columns + i % size / rows)...);
#else
  return __builtin_shuffle(v, decltype(v < v){(i / size * size + i % rows * columns + i % size / rows)...});
#endif
}

template <int rows, int columns, class V>
RULE_FN V transposed(V v) {
  return transposed<rows, columns>(v, std::make_integer_sequence<int, sizeof v / sizeof v[0]>());
}

// Words j of which the bytes are j, N + j, 2 N + j and 3 N + j of x; and back.
template <int N>
RULE_FN Words<N> spread(Bytes<N> x) {
  return (Words<N>)transposed<4, 4>((Bytes<N>)transposed<4, N / 4>((Words<N>)x));
}

template <int N>
RULE_FN Bytes<N> gathered(Words<N> x) {
  return (Bytes<N>)transposed<N / 4, 4>((Words<N>)transposed<4, 4>((Bytes<N>)x));
}

template <bool is_signed, int N>
RULE_FN void decode(float* to, const uint8_t* codes, float factor) {
  constexpr uint16_t base = Code<is_signed>::kBase >> 16, fields = Code<is_signed>::kLast << 3;
  const Words<N> all = spread<N>(read<Bytes<N>>(codes));
  for (int odd = 0; odd < 2; ++odd) {
    const Halves<N> top = odd ? (Halves<N>)all : (Halves<N>)all << 8;  // a code in each upper byte
    const Words<N> signs = (Words<N>)top, y = (Words<N>)(((top >> 5) & fields) | base);
    for (int upper = 0; upper < 2; ++upper) {
      Floats<N> x = ((Floats<N>)(upper ? y & 0xffff0000 : y << 16) - 2.0f) * factor;
      if (is_signed) x = (Floats<N>)((Words<N>)x ^ ((upper ? signs : signs << 16) & 0x80000000));
      write(to + (2 * upper + odd) * N, x);
    }
  }
}

// For finite numbers. The noise of element i is noise[i] ^ key.
template <bool is_signed, int N>
RULE_FN void encode(uint8_t* codes, const float* x, float factor, const uint32_t* noise, uint32_t key) {
  constexpr uint32_t base = Code<is_signed>::kBase;
  Halves<N> top[2];
  for (int odd = 0; odd < 2; ++odd) {
    Words<N> y[2];
    for (int upper = 0; upper < 2; ++upper) {
      const int at = (2 * upper + odd) * N;
      const Words<N> bits = read<Words<N>>(x + at), two = is_signed ? (bits & 0x80000000) | base : Words<N>{} + base;
      y[upper] = (Words<N>)((Floats<N>)two + (Floats<N>)bits * factor) + (read<Words<N>>(noise + at) ^ key);
      if (!is_signed) {
        const Signed<N> least = ((Signed<N>)bits > 0x00ffffff) & int32_t(base + (1 << 19));
        y[upper] = (Words<N>)((Signed<N>)y[upper] > least ? (Signed<N>)y[upper] : least);
      }
    }
    const Halves<N> both = (Halves<N>)((y[0] >> 16) | (y[1] & 0xffff0000));
    top[odd] = both << 5 | (both & uint16_t(is_signed ? 0x8000 : 0));  // base is shifted out
  }
  write(codes, gathered<N>((Words<N>)(top[0] >> 8 | (top[1] & uint16_t(0xff00)))));
}

}  // namespace lanes
