// The CPU backend: one pass over memory for a list of tensors, behind a C interface. The passes themselves are in
// csrc/loops.h.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "blocks.h"
#include "steps.h"
#include "sums.h"
#include "team.h"
#include "tensors.h"

namespace {

using namespace storage;
using namespace tables;

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
void run(const steps::Spans<Rule>& spans, const Kinds& kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper, double grad_scale,
         int threads) {
  constexpr int width = kWidth<Rule>;
  const Common<Rule, R>* common = begin_step<Rule, R>(kinds, rows, table, hyper_of<Rule>(hyper), grad_scale);
  const auto update = spans.get(kinds.taken, R());
  Split(rows, ends, threads).run([=](int64_t i, int64_t begin, int64_t end) {
    update(kinds, common[i], table + i * width, begin, end);
  });
  if (kinds.taken)
    for (int64_t i = 0; i < rows; ++i) table[i * width + kPrevious] = table[i * width + kGrad];
}

// The same for a rule with a factor for each block of consecutive elements, which it makes from their squares. The
// factors of long blocks and of those that two threads share are made before the others.
template <class Rule, class T, class R>
void run_blocks(const steps::Spans<Rule>& spans, const Kinds& kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper,
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
  const auto update = spans.get(false, R());
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
EXPORT intptr_t cpu_same_items(const tensors::Python* python, PyObject* list, PyObject* const* before, intptr_t count) {
  return tensors::same_items(*python, list, before, count);
}

EXPORT intptr_t cpu_same_values(const tensors::Python* python, PyObject* dict, PyObject* const* before, intptr_t count) {
  return tensors::same_values(*python, dict, before, count);
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
#define EXPORT_RULE(NAME, RULE)                                                                                      \
  EXPORT void cpu_##NAME(const Kinds* kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper,   \
                         double grad_scale, int threads) {                                                           \
    const auto step = kinds->parameter == kFloat64 ? run<rules::RULE, double> : run<rules::RULE, float>;             \
    step(steps::best().NAME, *kinds, rows, table, ends, hyper, grad_scale, threads);                                 \
  }
#define EXPORT_STEPS(NAME, RULE)                           \
  EXPORT_RULE(NAME, RULE)                                  \
  EXPORT_RULE(NAME##_agreement, Agreement<rules::RULE>)    \
  EXPORT_RULE(NAME##_cautious, Cautious<rules::RULE>)
RULES_OF_STEPS(EXPORT_STEPS)
OTHER_RULES(EXPORT_RULE)

// The same, factors and all.
EXPORT void cpu_adam_mini_blocks(const Kinds* kinds, int64_t rows, void** table, const int64_t* ends, const double* hyper,
                                 double grad_scale, int threads) {
  using rules::AdamMini;
  const auto step = kinds->parameter == kFloat64    ? run_blocks<AdamMini, double, double>
                    : kinds->parameter == kBfloat16 ? run_blocks<AdamMini, bfloat16, float>
                    : kinds->parameter == kFloat16  ? run_blocks<AdamMini, float16, float>
                                                    : run_blocks<AdamMini, float, float>;
  step(steps::best().adam_mini, *kinds, rows, table, ends, hyper, grad_scale, threads);
}

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
EXPORT double cpu_total_square_sum(int parameter, int64_t count, const void* const* x, int64_t stride, const int64_t* ends,
                            int threads) {
  return sums::of_all(parameter, count, x, stride, ends, threads);
}
}
