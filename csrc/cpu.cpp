// The CPU backend: one pass over memory for a list of tensors, behind a C interface. Each element of the
// parameter, the gradient and the states is read once and written once (the gradient is not written).
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "rules.h"
#include "tensors.h"

namespace {

// Storage: how a number is kept in memory. The rule computes in `Register`.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

RULE_FN float load(float x) { return x; }
RULE_FN double load(double x) { return x; }
RULE_FN float load(bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
RULE_FN float load(float16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = uint32_t(x.bits & 0x7fff) << 13;
  const float value = float_of(rest) * float_of(0x77800000);  // 2^112 moves the exponent's bias
  return float_of(sign | (rest >= 0x0f800000 ? rest | 0x7f800000 : bits_of(value)));
}

RULE_FN void store(float& to, float x) { to = x; }
RULE_FN void store(double& to, double x) { to = x; }
RULE_FN void store(bfloat16& to, float x) {  // to nearest, ties to even
  const uint32_t u = bits_of(x);
  to.bits = x != x ? uint16_t(0x7fc0) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
RULE_FN void store(float16& to, float x) {  // to nearest, ties to even
  const uint32_t u = bits_of(x), magnitude = u & 0x7fffffff;
  const uint32_t normal = (magnitude - 0x38000000 + 0x0fff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;  // the addition rounds
  uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  to.bits = uint16_t(half | ((u >> 16) & 0x8000));
}

template <class Storage>
using Register = decltype(load(Storage()));

template <class Rule, class Storage>
using Scalars = typename Rule::template Scalars<Register<Storage>>;

// Elements [begin, end) of one tensor.
template <class Rule, class Storage>
RULE_FN void span(const Scalars<Rule, Storage>& scalars, void* const* row, int64_t begin, int64_t end) {
  const auto k = scalars;  // a copy that no store can alias, or the loop is not vectorised
  Storage* p = static_cast<Storage*>(row[0]);
  const Storage* g = static_cast<const Storage*>(row[1]);
  Storage* s[Rule::states];
  for (int j = 0; j < Rule::states; ++j) s[j] = static_cast<Storage*>(row[3 + j]);
#pragma GCC ivdep
  for (int64_t i = begin; i < end; ++i) {
    Register<Storage> parameter = load(p[i]), state[Rule::states];
    for (int j = 0; j < Rule::states; ++j) state[j] = load(s[j][i]);
    Rule::update(k, load(g[i]), parameter, state);
    store(p[i], parameter);
    for (int j = 0; j < Rule::states; ++j) store(s[j][i], state[j]);
  }
}

// The same loop compiled for each instruction set; floating-point contraction is off (setup.py), so all
// give the same bits. The widest that the processor has is taken.
template <class Rule, class Storage>
using Span = void (*)(const Scalars<Rule, Storage>&, void* const*, int64_t, int64_t);

#define SPAN_FOR(NAME, ...)                                                                                  \
  template <class Rule, class Storage>                                                                       \
  __VA_ARGS__ void NAME(const Scalars<Rule, Storage>& k, void* const* row, int64_t begin, int64_t end) {     \
    span<Rule, Storage>(k, row, begin, end);                                                                 \
  }
SPAN_FOR(span_baseline, )
#ifdef __x86_64__
SPAN_FOR(span_avx2, __attribute__((target("avx2"))))
SPAN_FOR(span_avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))))
#endif

int instruction_set() {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
  return 0;
}

template <class Rule, class Storage>
Span<Rule, Storage> best_span() {
#ifdef __x86_64__
  static const Span<Rule, Storage> table[] = {span_baseline<Rule, Storage>, span_avx2<Rule, Storage>,
                                              span_avx512<Rule, Storage>};
  static const Span<Rule, Storage> best = table[instruction_set()];
  return best;
#else
  return span_baseline<Rule, Storage>;
#endif
}

constexpr int64_t kAlign = 64;            // elements; a cut inside a tensor keeps its alignment
constexpr int64_t kWorthAThread = 32768;  // elements; waking a thread costs about as much as this many

// Splits the concatenation of all tensors, not each tensor, evenly over the threads.
// ends[i] is the number of elements in tensors 0..i.
template <class Rule, class Storage>
void run(int64_t rows, void* const* table, const int64_t* ends, const double* hyper, double grad_scale, int threads) {
  constexpr int width = 3 + Rule::states;
  typename Rule::Hyper h;
  std::memcpy(&h, hyper, sizeof h);
  static thread_local std::vector<Scalars<Rule, Storage>> scratch;  // keeps its memory between steps
  scratch.clear();
  scratch.reserve(rows);
  float last = 0;
  for (int64_t i = 0; i < rows; ++i) {
    float& step = *static_cast<float*>(table[i * width + 2]);
    step += 1;
    if (i && step == last)
      scratch.push_back(scratch.back());
    else
      scratch.emplace_back(h, double(step), grad_scale);
    last = step;
  }
  const Scalars<Rule, Storage>* scalars = scratch.data();
  const Span<Rule, Storage> update = best_span<Rule, Storage>();
  const int64_t total = rows ? ends[rows - 1] : 0;
  const int team = int(std::max<int64_t>(1, std::min<int64_t>(threads, total / kWorthAThread)));
  const auto tensor_at = [=](int64_t at) { return std::upper_bound(ends, ends + rows, at) - ends; };
  const auto cut = [=](int64_t rank, int64_t ranks) {
    if (rank == ranks) return total;
    const int64_t at = total / ranks * rank, i = tensor_at(at), first = i ? ends[i - 1] : 0;
    return first + (at - first) / kAlign * kAlign;
  };
  const auto work = [=](int64_t rank, int64_t ranks) {
    int64_t at = cut(rank, ranks);
    const int64_t stop = cut(rank + 1, ranks);
    for (int64_t i = tensor_at(at); at < stop; ++i) {
      const int64_t first = i ? ends[i - 1] : 0, end = std::min(ends[i], stop);
      if (at < end) update(scalars[i], table + i * width, at - first, end - first);
      at = std::max(at, end);
    }
  };
  if (team == 1)
    work(0, 1);
  else
#pragma omp parallel num_threads(team)
    work(omp_get_thread_num(), omp_get_num_threads());
}

template <class Rule>
int dispatch(int storage, int64_t rows, void* const* table, const int64_t* ends, const double* hyper,
             double grad_scale, int threads) {
  switch (storage) {
    case 0: run<Rule, float>(rows, table, ends, hyper, grad_scale, threads); return 0;
    case 1: run<Rule, double>(rows, table, ends, hyper, grad_scale, threads); return 0;
    case 2: run<Rule, bfloat16>(rows, table, ends, hyper, grad_scale, threads); return 0;
    case 3: run<Rule, float16>(rows, table, ends, hyper, grad_scale, threads); return 0;
  }
  return 1;
}

}  // namespace

extern "C" {

const char* cpu_instruction_set() {
  static const char* const names[] = {"baseline", "AVX2", "AVX-512"};
  return names[instruction_set()];
}

// These three must be called with the GIL; see csrc/tensors.h.
intptr_t cpu_same_items(PyObject* list, PyObject* const* before, intptr_t count) {
  return tensors::same_items(list, before, count);
}

intptr_t cpu_same_values(PyObject* dict, PyObject* const* before, intptr_t count) {
  return tensors::same_values(dict, before, count);
}

intptr_t cpu_refresh(PyObject* const* params, PyObject* const* states, PyObject* const* held, PyObject* grad,
                     intptr_t rows, intptr_t width, void* read, const uint64_t* fingerprints, void** table) {
  return tensors::refresh(params, states, held, grad, rows, width, reinterpret_cast<tensors::Reader>(read),
                          fingerprints, table);
}

// One step of a rule on tensors of one storage type (0 float32, 1 float64, 2 bfloat16, 3 float16).
// Rows of the table are {parameter, gradient, step count, states...}. Returns 0, or 1 for an unknown type.
#define EXPORT_RULE(NAME, RULE)                                                                           \
  int cpu_##NAME(int storage, int64_t rows, void* const* table, const int64_t* ends, const double* hyper, \
                 double grad_scale, int threads) {                                                        \
    return dispatch<rules::RULE>(storage, rows, table, ends, hyper, grad_scale, threads);                 \
  }
EXPORT_RULE(adan, Adan)
EXPORT_RULE(adamw, AdamW)
}
