// The CPU backend: one pass over memory for a list of tensors, behind a C interface. Each element of the
// parameter, the gradient and the states is read once and written once (the gradient is not written).
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "convert.h"
#include "sums.h"
#include "table.h"
#include "team.h"
#include "tensors.h"

namespace {

using namespace storage;
using namespace tables;
using converting::Noise;

// The sum of a block, the same on every instruction set.
template <class R>
RULE_FN R total(const R (&x)[kBlock]) {
  constexpr int lanes = 16;
  R sums[lanes] = {};
  for (int i = 0; i < kBlock; i += lanes)
    for (int j = 0; j < lanes; ++j) sums[j] += x[i + j];
  for (int half = lanes / 2; half; half /= 2)
    for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
  return sums[0];
}

// Whether state j of a rule is in memory; it may be the gradient of the step before instead.
template <class Rule, bool taken>
constexpr bool kept(int j) {
  return !taken || j != Rule::previous;
}

// The rule for n elements: p, g and the previous gradient in the type of the arithmetic, states as S: that
// type too, or bfloat16 with stochastic rounding (then at most kBlock elements, with their noise).
// Element i has the factor x[i], and all have decay; the numbers to be added up go to sums[j][i].
template <class Rule, class S, bool taken, class R>
RULE_FN void loop(const Common<Rule, R>& common, R* p, const R* g, const R* previous, S* const* states, int64_t n,
                  const uint32_t* places, uint32_t key, const R* x, R decay, R (*sums)[kBlock]) {
  constexpr bool rounded = !std::is_same_v<S, R>;
  const auto k = common.scalars;  // copies that no store can alias, or the loop is not vectorised
  const R previous_scale = common.previous_scale;
  S* s[rules::kSlots<Rule>];
  for (int j = 0; j < Rule::states; ++j) s[j] = states[j];
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    R parameter = p[i], gradient = g[i], state[rules::kSlots<Rule>], number[rules::kSums<Rule>];
    if constexpr (rounded) gradient = quiet_input(gradient);
    for (int j = 0; j < Rule::states; ++j) state[j] = kept<Rule, taken>(j) ? load(s[j][i]) : -previous_scale * previous[i];
    rules::update<Rule>(k, Rule::factors ? x[i] : R(1), decay, gradient, parameter, state, number);
    for (int j = 0; j < Rule::sums; ++j) sums[j][i] = number[j];
    if constexpr (Rule::writes_param) p[i] = parameter;
    for (int j = 0; j < Rule::states; ++j) {
      if (!kept<Rule, taken>(j) || !Rule::writes_states) continue;
      if constexpr (rounded)
        store(s[j][i], state[j], noise_bits(places[i] ^ key, j));
      else
        store(s[j][i], state[j]);
    }
  }
}

// The factors of n elements from `at` on of the tensor of a row.
template <class R>
RULE_FN void fill_factors(R* to, void* const* row, int64_t at, int64_t n) {
  const R *rows = static_cast<const R*>(row[kRowFactors]), *columns = static_cast<const R*>(row[kColumnFactors]);
  const int64_t length = reinterpret_cast<int64_t>(row[kLength]);
  for (int64_t i = 0, r = at / length, c = at % length; i < n; ++r, c = 0) {
    const R factor = rows ? rows[r] : R(1);
    const int64_t end = std::min(n, i + length - c);
    if (columns)
      for (const R* column = columns + c; i < end; ++i, ++column) to[i] = factor * *column;
    else
      for (; i < end; ++i) to[i] = factor;
  }
}

// The rule for elements from `at` on of the tensor of a row, with its factors and sums; where it has either,
// `at` is a multiple of kBlock.
template <class Rule, class S, bool taken, class R>
RULE_FN void update(const Common<Rule, R>& common, R* p, const R* g, const R* previous, S* const* states, int64_t n,
                    const uint32_t* places, uint32_t key, void* const* row, int64_t at) {
  if constexpr (!Rule::factors && !Rule::sums)
    return loop<Rule, S, taken, R>(common, p, g, previous, states, n, places, key, nullptr, R(0), nullptr);
  const R decay = row[kDecay] ? *static_cast<const R*>(row[kDecay]) : R(0);
  for (int64_t i = 0; i < n; i += kBlock) {
    const int64_t count = std::min<int64_t>(kBlock, n - i);
    alignas(64) R x[kBlock], sums[rules::kSums<Rule>][kBlock] = {};
    S* s[rules::kSlots<Rule>];
    for (int j = 0; j < Rule::states; ++j) s[j] = states[j] + i;
    if constexpr (Rule::factors) fill_factors(x, row, at + i, count);
    loop<Rule, S, taken, R>(common, p + i, g + i, taken ? previous + i : nullptr, s, count, places, key, x, decay,
                               sums);
    for (int j = 0; j < Rule::sums; ++j)
      static_cast<R*>(row[kBlockSums])[(at + i) / kBlock * Rule::sums + j] = total(sums[j]);
  }
}

template <class Rule, class S>
RULE_FN std::array<S*, rules::kSlots<Rule>> states_at(void* const* row, int64_t at) {
  std::array<S*, rules::kSlots<Rule>> s;
  for (int j = 0; j < Rule::states; ++j) s[j] = static_cast<S*>(row[kStates + j]) + at;
  return s;
}

// Elements [begin, end) of a tensor whose states are kept in the type of the arithmetic, as it is itself.
template <class Rule, bool taken, class R>
RULE_FN void direct(const Common<Rule, R>& common, void* const* row, int64_t begin, int64_t end) {
  const auto at = [=](int column) { return static_cast<R*>(row[column]) + begin; };
  const R* previous = taken ? at(kPrevious) : nullptr;
  const auto s = states_at<Rule, R>(row, begin);
  update<Rule, R, taken>(common, at(kParam), at(kGrad), previous, s.data(), end - begin, nullptr, 0, row, begin);
}

// At most kBlock elements of a tensor, from a multiple of kBlock on. What is not kept in float32 is expanded
// into buffers first, but for bfloat16 states, which the rule's own loop converts.
template <class Rule, bool taken, class Convert>
RULE_FN void block(const Kinds& kinds, const Common<Rule, float>& common, void* const* row, int64_t at, int64_t n,
                   const Noise& noise) {
  const uint32_t key = noise_of_block(common.step, uint64_t(at) / kBlock);
  alignas(64) float buffers[3 + Rule::states][kBlock];
  float* three[3];
  constexpr Column columns[3] = {kParam, kGrad, kPrevious};
  for (int c = 0; c < (taken ? 3 : 2); ++c) {
    three[c] = kinds.parameter == kFloat32 ? static_cast<float*>(row[columns[c]]) + at : buffers[c];
    if (kinds.parameter != kFloat32) Convert::expand(kinds.parameter, three[c], row[columns[c]], at, n);
  }
  auto& [p, g, previous] = three;
  if (kinds.rounding == kKahan || kinds.rounding == kSplit) Convert::add_rest(kinds.rounding, p, row, at, n);
  if (kinds.state == kStateFloat32) {
    const auto s = states_at<Rule, float>(row, at);
    update<Rule, float, taken>(common, p, g, previous, s.data(), n, nullptr, 0, row, at);
  } else if (kinds.state == kStateBfloat16) {
    const auto s = states_at<Rule, bfloat16>(row, at);
    update<Rule, bfloat16, taken>(common, p, g, previous, s.data(), n, noise.places, key, row, at);
  } else {
    float* s[rules::kSlots<Rule>];
    constexpr auto is_signed = [](int j) { return !(Rule::nonnegative >> j & 1); };
    const auto maximum = [=](int j) { return static_cast<float*>(row[kStates + Rule::states + j]) + at / kBlock; };
    for (int j = 0; j < Rule::states; ++j) {
      s[j] = buffers[3 + j];
      if (!kept<Rule, taken>(j)) continue;
      if (kinds.state != kStateInt8)
        Convert::expand(kinds.parameter, s[j], row[kStates + j], at, n);
      else
        Convert::decode(is_signed(j), s[j], row[kStates + j], at, *maximum(j), n);
    }
    update<Rule, float, taken>(common, p, g, previous, s, n, nullptr, 0, row, at);
    for (int j = 0; j < Rule::states; ++j)  // all before the first is used: a quotient of it takes long
      if (kinds.state == kStateInt8 && Rule::writes_states && kept<Rule, taken>(j)) *maximum(j) = Convert::largest(s[j], n);
    for (int j = 0; j < Rule::states; ++j) {
      if (!Rule::writes_states || !kept<Rule, taken>(j)) continue;
      const uint32_t part = noise_of_code(key, j) >> kUnused;
      if (kinds.state != kStateInt8)
        Convert::shrink(kinds.parameter, row[kStates + j], at, s[j], n);
      else
        Convert::encode(is_signed(j), row[kStates + j], at, *maximum(j), s[j], n, noise.of_codes[j % 2], part);
    }
  }
  if (kinds.parameter != kFloat32 && Rule::writes_param) Convert::store_param(kinds, row, at, p, n, noise, key);
}

// Elements [begin, end) of any tensor; begin is a multiple of kBlock.
template <class Rule, bool taken, class Convert>
RULE_FN void span(const Kinds&, const Common<Rule, double>& common, void* const* row, int64_t begin, int64_t end) {
  direct<Rule, taken>(common, row, begin, end);
}

template <class Rule, bool taken, class Convert>
RULE_FN void span(const Kinds& kinds, const Common<Rule, float>& common, void* const* row, int64_t begin,
                  int64_t end) {
  if (!Rule::small || (kinds.parameter == kFloat32 && (kinds.state == kLikeParameter || kinds.state == kStateFloat32)))
    return direct<Rule, taken>(common, row, begin, end);
  if constexpr (Rule::small) {
    const Noise noise(common.step, std::min<int64_t>(kBlock, end - begin));
    for (int64_t at = begin; at < end; at += kBlock)
      block<Rule, taken, Convert>(kinds, common, row, at, std::min<int64_t>(kBlock, end - at), noise);
  }
}

// The same loops compiled for each instruction set; floating-point contraction is off (setup.py), so all
// give the same bits. The widest that the processor has is taken.
template <class Rule, class R>
using Span = void (*)(const Kinds&, const Common<Rule, R>&, void* const*, int64_t, int64_t);

#define SPAN_FOR(NAME, ...)                                                                                 \
  template <class Rule, bool taken, class R>                                                                \
  __VA_ARGS__ void span_##NAME(const Kinds& kinds, const Common<Rule, R>& k, void* const* row, int64_t begin, int64_t end) { \
    span<Rule, taken, converting::NAME>(kinds, k, row, begin, end);                                                           \
  }
SPAN_FOR(baseline, )
#if defined(TARGET_AVX2)
SPAN_FOR(avx2, TARGET_AVX2)
SPAN_FOR(avx512, TARGET_AVX512)
#elif defined(TARGET_SVE)
SPAN_FOR(sve, TARGET_SVE)
#endif

template <class Rule, bool taken, class R>
Span<Rule, R> best_span() {
  static constexpr Span<Rule, R> table[] = {
      span_baseline<Rule, taken, R>,
#if defined(TARGET_AVX2)
      span_avx2<Rule, taken, R>, span_avx512<Rule, taken, R>,
#elif defined(TARGET_SVE)
      span_sve<Rule, taken, R>,
#endif
  };
  static const Span<Rule, R> best = table[processor::instruction_set()];
  return best;
}

constexpr int64_t kWorthAThread = 32768;  // elements; waking a thread costs about as much as this many

// Counts the steps, and makes what the elements of each tensor have in common.
template <class Rule, class R>
const Common<Rule, R>* begin_step(const Kinds& kinds, int64_t rows, void** table, const typename Rule::Hyper& hyper,
                                  double grad_scale) {
  static thread_local std::vector<Common<Rule, R>> scratch;  // keeps its memory between steps
  scratch.clear();
  scratch.reserve(rows);
  for (int64_t i = 0; i < rows; ++i) {
    void** row = table + i * kWidth<Rule>;
    float& step = *static_cast<float*>(row[kStep]);
    step += Rule::counts;
    if (i && uint32_t(step) == scratch.back().step)
      scratch.push_back(scratch.back());
    else
      scratch.push_back({{hyper, double(step), grad_scale}, uint32_t(step), 0});
    if (kinds.taken) {
      R& scale = *static_cast<R*>(row[kPreviousScale]);
      scratch.back().previous_scale = scale;
      scale = R(grad_scale);
    }
  }
  return scratch.data();
}

template <class Rule>
typename Rule::Hyper hyper_of(const double* numbers) {
  typename Rule::Hyper h;
  std::memcpy(&h, numbers, sizeof h);
  return h;
}

// Splits the concatenation of all tensors, not each tensor, evenly over the threads; a cut inside a tensor
// is between two blocks. ends[i] is the number of elements in tensors 0..i.
struct Split {
  int64_t rows, total;
  const int64_t* ends;
  int team;

  Split(int64_t rows, const int64_t* ends, int threads)
      : rows(rows), total(rows ? ends[rows - 1] : 0), ends(ends),
        team(int(std::max<int64_t>(1, std::min<int64_t>(threads, total / kWorthAThread)))) {}

  int64_t first(int64_t i) const { return i ? ends[i - 1] : 0; }

  int64_t tensor_at(int64_t at) const { return std::upper_bound(ends, ends + rows, at) - ends; }

  int64_t cut(int64_t rank) const {
    if (rank == team) return total;
    const int64_t at = total / team * rank, begin = first(tensor_at(at));
    return begin + (at - begin) / kBlock * kBlock;
  }

  // Calls work(i, begin, end) for elements [begin, end) of tensor i, all together for every element once.
  template <class Work>
  void run(const Work& work) const {
    const auto part = [&](int64_t rank) {
      int64_t at = cut(rank);
      const int64_t stop = cut(rank + 1);
      for (int64_t i = tensor_at(at); at < stop; ++i) {
        const int64_t end = std::min(ends[i], stop);
        if (at < end) work(i, at - first(i), end - first(i));
        at = std::max(at, end);
      }
    };
    teams::run(team, [&](int64_t rank, int64_t ranks) {
      for (; rank < team; rank += ranks) part(rank);
    });
  }
};

template <class Rule, class R>
void run(const Kinds& kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper, double grad_scale,
         int threads) {
  constexpr int width = kWidth<Rule>;
  const Common<Rule, R>* common = begin_step<Rule, R>(kinds, rows, table, hyper_of<Rule>(hyper), grad_scale);
  const Span<Rule, R> update = kinds.taken ? best_span<Rule, (Rule::previous >= 0), R>() : best_span<Rule, false, R>();
  Split(rows, ends, threads).run([=](int64_t i, int64_t begin, int64_t end) {
    update(kinds, common[i], table + i * width, begin, end);
  });
  if (kinds.taken)
    for (int64_t i = 0; i < rows; ++i) table[i * width + kPrevious] = table[i * width + kGrad];
}

// The same for a rule with a factor for each block of consecutive elements, which it makes from their squares. The
// factors of long blocks and of those that two threads share are made before the others.
template <class Rule, class T, class R>
void run_blocks(const Kinds& kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper,
                double grad_scale, int threads) {
  constexpr int width = kWidth<Rule>;
  const auto h = hyper_of<Rule>(hyper);
  const Common<Rule, R>* common = begin_step<Rule, R>(kinds, rows, table, h, grad_scale);
  const Split split(rows, ends, threads);
  std::vector<blocks::Blocks<T, R>> tensors;
  std::vector<typename Rule::template Block<R>> scalars;
  std::vector<blocks::Some> before;
  for (int64_t i = 0; i < rows; ++i) {
    const blocks::Blocks<T, R>& of = tensors.emplace_back(table + i * width, ends[i] - split.first(i));
    if (i && common[i].step == common[i - 1].step)
      scalars.push_back(scalars.back());
    else
      scalars.push_back({h, double(common[i].step), grad_scale});
    if (of.length > blocks::kLong) before.push_back({i, 0, of.count});
  }
  for (int64_t rank = 1, at; rank < split.team && (at = split.cut(rank)) < split.total; ++rank) {
    const int64_t i = split.tensor_at(at), length = tensors[i].length, block = (at - split.first(i)) / length;
    const bool is_new = before.empty() || before.back().tensor != i || before.back().begin != block;
    if (length <= blocks::kLong && (at - split.first(i)) % length && is_new) before.push_back({i, block, block + 1});
  }
  if (!before.empty()) blocks::fill_before<Rule>(before, tensors, scalars, threads);
  const auto fill = blocks::Best<Rule, T, R>::fill[processor::instruction_set()];
  const auto update = best_span<Rule, false, R>();
  split.run([&](int64_t i, int64_t begin, int64_t end) {
    const blocks::Blocks<T, R>& of = tensors[i];
    void* const* row = table + i * width;
    if (of.length > blocks::kLong) return update(kinds, common[i], row, begin, end);
    int64_t done = sums::pieces(begin, of.length);
    for (int64_t at = begin; at < end; at += blocks::kTile) {
      const int64_t stop = std::min(at + blocks::kTile, end);
      const int64_t next = std::min(sums::pieces(stop, of.length), end / of.length);
      if (done < next) fill(scalars[i], of, done, next);
      done = std::max(done, next);
      update(kinds, common[i], row, at, stop);
    }
  });
}

}  // namespace

extern "C" {

EXPORT const char* cpu_instruction_set() {
  return processor::kNames[processor::instruction_set()];
}

EXPORT const char* cpu_threads() { return teams::kKind; }

// These must be called with the GIL; see csrc/tensors.h.
EXPORT intptr_t cpu_same_items(PyObject* list, PyObject* const* before, intptr_t count) {
  return tensors::same_items(list, before, count);
}

EXPORT intptr_t cpu_same_values(PyObject* dict, PyObject* const* before, intptr_t count) {
  return tensors::same_values(dict, before, count);
}

EXPORT intptr_t cpu_fingerprints(const tensors::Torch* torch, PyObject* const* objects, intptr_t count, uint64_t* to) {
  tensors::Tensor x;
  for (intptr_t i = 0; i < count; to[i++] = x.fingerprint)
    if (!tensors::describe(*torch, tensors::handle(*torch, objects[i]), &x)) return i;
  return count;
}

EXPORT intptr_t cpu_refresh(const tensors::Torch* torch, const tensors::Record* record, void** table,
                     PyObject* const* grads) {
  try {
    return tensors::refresh(*torch, *record, table, grads);
  } catch (...) {  // of torch; no exception may pass through ctypes
    return -1;
  }
}

EXPORT int cpu_bump_versions(const tensors::Torch* torch, const tensors::Record* record) {
  return tensors::bump_versions(*torch, *record);
}

// One step of a rule on tensors that are kept alike: {parameter, state, rounding, taken} of Kinds. Rows of
// the table are as in Column; ends[i] is the number of elements in tensors 0..i.
#define EXPORT_RULE(NAME, RULE)                                                                          \
  EXPORT void cpu_##NAME(const Kinds* kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper, \
                  double grad_scale, int threads) {                                                      \
    const auto step = kinds->parameter == kFloat64 ? run<rules::RULE, double> : run<rules::RULE, float>;  \
    step(*kinds, rows, table, ends, hyper, grad_scale, threads);                                         \
  }
#define EXPORT_STEPS(NAME, RULE)                           \
  EXPORT_RULE(NAME, RULE)                                  \
  EXPORT_RULE(NAME##_agreement, Agreement<rules::RULE>)    \
  EXPORT_RULE(NAME##_cautious, Cautious<rules::RULE>)
RULES_OF_STEPS(EXPORT_STEPS)
OTHER_RULES(EXPORT_RULE)

// The same, factors and all.
#define EXPORT_BLOCKS(NAME, RULE)                                                                                  \
  void cpu_##NAME##_blocks(const Kinds* kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper, \
                           double grad_scale, int threads) {                                                       \
    const auto step = kinds->parameter == kFloat64    ? run_blocks<rules::RULE, double, double>                    \
                      : kinds->parameter == kBfloat16 ? run_blocks<rules::RULE, bfloat16, float>                   \
                      : kinds->parameter == kFloat16  ? run_blocks<rules::RULE, float16, float>                    \
                                                      : run_blocks<rules::RULE, float, float>;                     \
    step(*kinds, rows, table, ends, hyper, grad_scale, threads);                                                   \
  }
EXPORT_BLOCKS(adam_mini, AdamMini)

// Sums of squares, times weights where there are any, of tensors of one dtype (Parameter): to[i] has one for each
// run of lengths[i] elements of x[i], of which there are sizes[i]. By columns: one for each place in such a run.
EXPORT void cpu_square_sums(int parameter, int64_t count, const void* const* x, const int64_t* sizes,
                     const int64_t* lengths, const void* const* weights, void* const* to, int threads) {
  sums::of_rows(parameter, count, x, sizes, lengths, weights, to, threads);
}

EXPORT void cpu_column_square_sums(int parameter, int64_t count, const void* const* x, const int64_t* sizes,
                            const int64_t* lengths, void* const* to, int threads) {
  sums::of_columns(parameter, count, x, sizes, lengths, to, threads);
}

// The sum of squares of all tensors: that at x[i * stride] ends at element ends[i] of their concatenation.
double cpu_total_square_sum(int parameter, int64_t count, const void* const* x, int64_t stride, const int64_t* ends,
                            int threads) {
  return sums::of_all(parameter, count, x, stride, ends, threads);
}
}
