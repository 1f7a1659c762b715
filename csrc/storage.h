// How numbers are kept in memory: bfloat16, float16 and 8-bit block-wise codes, as bit arithmetic that is
// the same on the host and under CUDA. optim/adan_optim/engine/storage.py computes the same in Python.
#pragma once

#include "rules.h"

#ifdef __CUDACC__
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cstdint>
#include <cstring>
#endif

namespace storage {

#ifdef __CUDACC__
RULE_FN uint32_t bits_of(float x) { return __float_as_uint(x); }
RULE_FN float float_of(uint32_t u) { return __uint_as_float(u); }
RULE_FN float magnitude(float x) { return fabsf(x); }  // part of the operation that uses it
#else
RULE_FN uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
RULE_FN float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}
RULE_FN float magnitude(float x) { return float_of(bits_of(x) & 0x7fffffff); }
#endif

// ---- noise for stochastic rounding: a function of the step, the element and the slot, and of nothing else

constexpr int kBlock = 256;  // elements that share a key here, and a scale in 8 bits

// 32 random bits for a counter: "lowbias32", https://nullprogram.com/blog/2018/07/31/.
RULE_FN uint32_t hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// The random bits of element i of block b are noise_of_place(step, i) ^ noise_of_block(step, b): any two
// elements and any two steps are independent of each other, for one operation an element.
RULE_FN uint32_t noise_of_place(uint32_t step, uint32_t i) { return hash(step * 0x9e3779b9u + i); }
RULE_FN uint32_t noise_of_block(uint32_t step, uint64_t block) {
  return hash(hash(step ^ 0x5bd1e995u) + uint32_t(block) + uint32_t(block >> 32) * 0x85ebca6bu);
}

// 16 of them, from either end: a state's slot takes the lower for even and the upper for odd numbers.
RULE_FN uint32_t noise_bits(uint32_t word, int slot) { return slot % 2 ? word >> 16 : word & 0xffff; }

// For an 8-bit code: 24 bits, of which the lower kUnused have no effect. The upper 8 of even and odd slots have no bit in
// common.
constexpr int kUnused = 5;
RULE_FN uint32_t noise_of_code(uint32_t word, int slot) { return slot % 2 ? word >> 8 : word & 0xffffff; }

// For the parameter itself: other bits than those of the states.
RULE_FN uint32_t noise_of_parameter(uint32_t word) { return ((word ^ (word >> 15)) * 0x2c1b3c6du) >> 16; }

// ---- 16-bit floating point

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};
RULE_FN uint32_t bits_of(bfloat16 x) { return x.bits; }
RULE_FN uint32_t bits_of(float16 x) { return x.bits; }
RULE_FN uint32_t bits_of(uint8_t x) { return x; }

RULE_FN float load(float x) { return x; }
RULE_FN double load(double x) { return x; }
RULE_FN float load(bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
#ifdef __CUDACC__
RULE_FN float load(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
#else
RULE_FN float load(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  const float value = float_of(rest) * float_of(0x77800000);  // 2^112 moves the exponent's bias
  return float_of(sign | (rest >= 0x0f800000 ? rest | 0x7f800000 : bits_of(value)));
}
#endif

RULE_FN void store(float& to, float x) { to = x; }
RULE_FN void store(double& to, double x) { to = x; }

// To nearest, ties to even. On a GPU the hardware converts: with the same results, except for the bits of a NaN.
#if __CUDA_ARCH__ >= 800
RULE_FN void store(bfloat16& to, float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#else
RULE_FN void store(bfloat16& to, float x) {
  const uint32_t u = bits_of(x);
  to.bits = x != x ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
#endif
#ifdef __CUDACC__
RULE_FN void store(float16& to, float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(x)); }
#else
RULE_FN void store(float16& to, float x) {
  const uint32_t u = bits_of(x), rest = u & 0x7fffffff;
  const uint32_t normal = (rest - 0x38000000 + 0x0fff + ((rest >> 13) & 1)) >> 13;
  const uint32_t subnormal = bits_of(float_of(rest) + 0.5f) - 0x3f000000;  // the addition rounds
  uint32_t half = rest < 0x38800000 ? subnormal : normal;
  half = rest >= 0x477ff000 ? 0x7c00 : half;
  half = rest > 0x7f800000 ? 0x7e00 : half;
  to.bits = uint16_t(half | ((u >> 16) & 0x8000));
}
#endif

constexpr uint32_t kInfinity = 0x7f800000;  // its bits

RULE_FN float quiet(float x) { return x != x ? float_of(0x7fc00000) : x; }

// Up with the probability of the part that is cut off, so that the mean is kept. noise: 16 random bits.
// The host's arithmetic gives a NaN whose leading bits are not all ones if its inputs are such, so that nothing
// carries into the sign; CUDA's gives 0x7fffffff, whatever the inputs.
RULE_FN void store(bfloat16& to, float x, uint32_t noise) {
  const uint32_t u = bits_of(x);
#ifdef __CUDACC__
  to.bits = x != x ? uint16_t(0x7fc0) : uint16_t((u + noise) >> 16);
#else
  to.bits = uint16_t((u + noise) >> 16);
#endif
}
RULE_FN float quiet_input(float x) {
#ifdef __CUDACC__
  return x;
#else
  return quiet(x);
#endif
}

// ---- what a bfloat16 parameter cannot hold of its value: its rest, in 2 more bytes

// Kahan: the rounding error of the parameter as another bfloat16.
RULE_FN float add(float x, bfloat16 rest) { return x + load(rest); }
RULE_FN void store(bfloat16& to, bfloat16& rest, float x) {
  store(to, x);
  store(rest, x - load(to));
}

// Split: the lower 16 bits, so that both are the float32 number itself. The parameter is rounded to nearest, ties
// away from zero: then its bits times 2^16 plus the rest, as a signed number, are those of the number. A sum that
// is a NaN where the parameter is none was not stored here: the parameter was set to 0 or inf from outside.
struct lower16 {
  uint16_t bits;
};
RULE_FN uint32_t bits_of(lower16 x) { return x.bits; }
RULE_FN float add(float x, lower16 rest) {
  const float sum = float_of(bits_of(x) + (uint32_t(rest.bits) ^ 0x8000) - 0x8000);
  return sum != sum ? x : sum;
}
RULE_FN void store(bfloat16& to, lower16& rest, float x) {
  const uint32_t u = bits_of(quiet(x));
  to.bits = uint16_t((u + 0x8000) >> 16);
  rest.bits = uint16_t(u);
}

// ---- 8 bits, in blocks with the absolute maximum of each

// A code holds the leading bits of the float32 number y = 2 + |x| kTop / maximum: the position of its binade
// and 4 bits of mantissa. Subtracting the 2 again makes the codes evenly spaced near zero, where a plain
// small float would need subnormals, and gives zero the code 0. The step at y is 1/16 of its power of two.
template <bool Signed>
struct Code {
  static constexpr uint32_t kBase = 0x40000000;               // bits of 2.0f; the fields of the code are 0
  static constexpr uint32_t kLast = Signed ? 0x7f : 0xff;     // the sign takes one bit
  static constexpr float kTop = Signed ? 494.0f : 126974.0f;  // y - 2 of the last code: 2^8 or 2^16 times 31/16

  // The factors for a block; the maximum is inf or NaN where any element is, and then so is what is read.
  static RULE_FN float decode_factor(float maximum) { return maximum * (1 / kTop); }
  static RULE_FN float encode_factor(float maximum) { return encode_factor(maximum, kTop); }
  static RULE_FN float encode_factor(float maximum, float top) {
    const float factor = top * (1 - 0x1p-22f) / maximum;  // so that no rounding of y goes beyond the last code
    return factor < 3e38f ? factor : maximum > 0 ? 3e38f : 0.0f;
  }

  static RULE_FN float decode(uint32_t code, float factor) {
    const float x = (float_of(((code << 19) & (kLast << 19)) | kBase) - 2.0f) * factor;
    return Signed ? float_of(bits_of(x) ^ ((code << 24) & 0x80000000)) : x;
  }

  // The code, in the upper 8 bits. A state that cannot be negative is not rounded down to zero, because it stands in
  // a denominator, unless it is below 2^-125.
  static RULE_FN uint32_t encode(float x, float factor, uint32_t noise) {
    const uint32_t u = bits_of(x);
    const uint32_t code = bits_of(2.0f + (Signed ? magnitude(x) : x) * factor) * 32 + noise;  // kBase is shifted out
    if (Signed) return (code & 0x7fffffff) | (u & 0x80000000);
    const uint32_t least = u < 0x01ffffff ? u : 0x01ffffff;
    return code > least ? code : least;
  }
};

// The upper 8 bits of four words, the first's lowest.
RULE_FN uint32_t top_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
#ifdef __CUDACC__
  return __byte_perm(__byte_perm(a, b, 0x73), __byte_perm(c, d, 0x73), 0x5410);
#else
  return a >> 24 | b >> 24 << 8 | c >> 24 << 16 | d >> 24 << 24;
#endif
}

// The larger of the bits of an absolute value and those of another number's; NaN is above all others.
RULE_FN uint32_t larger(uint32_t top, float x) {
#if __CUDA_ARCH__ >= 800
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(float_of(top)), "f"(magnitude(x)));
  return bits_of(y);
#else
  const uint32_t bits = bits_of(magnitude(x));
  return bits > top ? bits : top;
#endif
}

}  // namespace storage
