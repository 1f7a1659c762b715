// What depends on the compiler, the system or the processor, apart from RULE_FN of rules.h.
#pragma once

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

// The iterations of the loop that follows depend on none before them.
#if defined(__clang__)
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT __pragma(loop(ivdep))
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

// Functions that are compiled for several instruction sets.
#if defined(__x86_64__)
#ifdef __clang__
#define WIDE_AVX512 min_vector_width(512), target("avx512f,avx512bw,avx512dq,avx512vl")
#else
#define WIDE_AVX512 target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((WIDE_AVX512))
#elif defined(__aarch64__) && defined(__linux__)
#define TARGET_SVE __attribute__((target("+sve")))
#endif

namespace processor {

// What every processor of a kind has, and what else functions are compiled for, the widest last.
#if defined(TARGET_AVX2)
constexpr const char* kNames[] = {"baseline", "AVX2", "AVX-512"};
#elif defined(TARGET_SVE)
constexpr const char* kNames[] = {"NEON", "SVE"};
#elif defined(__aarch64__)
constexpr const char* kNames[] = {"NEON"};
#else
constexpr const char* kNames[] = {"baseline"};
#endif

// The number of the widest that the processor at hand has.
inline int instruction_set() {
#if defined(TARGET_AVX2)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#elif defined(TARGET_SVE)
  return getauxval(AT_HWCAP) >> 22 & 1;  // HWCAP_SVE
#endif
  return 0;
}

}  // namespace processor
