// What depends on the compiler, the system or the processor, apart from RULE_FN of rules.h.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#ifdef _MSC_VER
#define NOINLINE __declspec(noinline)
#else
#define NOINLINE __attribute__((noinline))
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

#if defined(TARGET_AVX2)
// Asked of the processor itself: __builtin_cpu_supports is a stub in some runtimes of Clang.
static inline int widest() {
  unsigned a, b, c, d, low = 0, high;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;  // OSXSAVE, without which there is no xgetbv
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));               // which registers the system saves
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  constexpr unsigned ymm = 0x6, zmm = 0xe6, avx2 = 1u << 5, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F DQ BW VL
  return (low & ymm) != ymm || !(b & avx2) ? 0 : (low & zmm) != zmm || (b & avx512) != avx512 ? 1 : 2;
}
#elif defined(TARGET_SVE)
static inline int widest() { return int(getauxval(AT_HWCAP) >> 22 & 1); }  // HWCAP_SVE
#else
static inline int widest() { return 0; }
#endif

// The number of the widest that the processor at hand has. ATEN_CPU_CAPABILITY limits it, as it does torch: "default" to
// what every processor has, "avx2" to AVX2. Read once; `static`, so that two copies of the library have a value each.
static inline int instruction_set() {
  static const int found = [] {
    const char* limit = std::getenv("ATEN_CPU_CAPABILITY");
    const auto is = [limit](const char* name) { return limit && !std::strcmp(limit, name); };
    const int most = is("default") ? 0 : is("avx2") ? 1 : 2, here = widest();
    return here < most ? here : most;
  }();
  return found;
}

}  // namespace processor
