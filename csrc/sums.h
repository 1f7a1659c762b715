// Sums of squares on the CPU: of a list of tensors by rows, by columns or all together, each element read once. The
// same bits with any number of threads and on every instruction set; those of rows and columns also under CUDA.
#pragma once

#include <algorithm>
#include <vector>

#include "processor.h"
#include "sums_order.h"
#include "table.h"
#include "team.h"

namespace sums {

using storage::load;

constexpr int64_t kStrip = 1024;  // columns that are added up side by side
constexpr int kAhead = 4096;      // bytes; the processor's own prefetching stops at the end of a page

template <bool weighted, class T, class R>
RULE_FN double row(const T* x, const R* weights, int64_t n) {
  double sum = 0;
  for (int64_t at = 0; at < n; at += kChain) {
    const int64_t count = std::min(kChain, n - at), whole = count / kLanes * kLanes;
    R lanes[kLanes] = {};
    for (int64_t i = at; i < at + whole; i += kLanes) {
      const char* ahead = reinterpret_cast<const char*>(x + i) + kAhead;
      for (size_t line = 0; line < kLanes * sizeof(T); line += 64) __builtin_prefetch(ahead + line, 0, 2);
      for (int j = 0; j < kLanes; ++j) {
        const R value = load(x[i + j]);
        lanes[j] += weighted ? value * value * weights[i + j] : value * value;
      }
    }
    for (int64_t i = at + whole; i < at + count; ++i) {
      const R value = load(x[i]);
      lanes[i - at - whole] += weighted ? value * value * weights[i] : value * value;
    }
    for (int half = kLanes / 2; half; half /= 2)
      for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    sum += lanes[0];
  }
  return sum;
}

// Adds rows of `length` elements to `count` <= kStrip sums; x is the first of them.
template <class T, class R>
RULE_FN void columns(const T* x, int64_t rows, int64_t length, int64_t count, double* to) {
  for (int64_t begin = 0; begin < rows; begin += kRowChain) {
    R strip[kStrip] = {};
    for (int64_t i = begin; i < std::min(rows, begin + kRowChain); ++i)
      for (int64_t j = 0; j < count; ++j) {
        const R value = load(x[i * length + j]);
        strip[j] += value * value;
      }
    for (int64_t j = 0; j < count; ++j) to[j] += strip[j];
  }
}

#define SUMS_FOR(NAME, ...)                                                                                     \
  template <class T, class R>                                                                                   \
  __VA_ARGS__ double row_##NAME(const T* x, const R* weights, int64_t n) {                                      \
    return weights ? row<true>(x, weights, n) : row<false>(x, weights, n);                                      \
  }                                                                                                             \
  template <class T, class R>                                                                                   \
  __VA_ARGS__ void columns_##NAME(const T* x, int64_t rows, int64_t length, int64_t count, double* to) {        \
    columns<T, R>(x, rows, length, count, to);                                                                  \
  }
SUMS_FOR(baseline, )
#if defined(TARGET_AVX2)
SUMS_FOR(avx2, TARGET_AVX2)
SUMS_FOR(avx512, TARGET_AVX512)
#elif defined(TARGET_SVE)
SUMS_FOR(sve, TARGET_SVE)
#endif

template <class T, class R>
struct Best {
  static constexpr double (*rows[])(const T*, const R*, int64_t) = {
      row_baseline<T, R>,
#if defined(TARGET_AVX2)
      row_avx2<T, R>, row_avx512<T, R>,
#elif defined(TARGET_SVE)
      row_sve<T, R>,
#endif
  };
  static constexpr void (*cols[])(const T*, int64_t, int64_t, int64_t, double*) = {
      columns_baseline<T, R>,
#if defined(TARGET_AVX2)
      columns_avx2<T, R>, columns_avx512<T, R>,
#elif defined(TARGET_SVE)
      columns_sve<T, R>,
#endif
  };
};

inline int team(int64_t elements, int threads) {
  return int(std::max<int64_t>(1, std::min<int64_t>(threads, elements / kUnit)));
}

template <class T, class R>
void of_rows_as(int64_t count, const void* const* x, const int64_t* sizes, const int64_t* lengths,
                const void* const* weights, void* const* to, int threads) {
  struct Unit {
    int64_t tensor, begin, end;
    double sum;  // where it is part of a row
  };
  std::vector<Unit> units;
  int64_t elements = 0;
  for (int64_t i = 0; i < count; ++i) {
    elements += sizes[i];
    const int64_t length = lengths[i], step = length > kUnit ? kUnit : kUnit / std::max<int64_t>(length, 1) * length;
    for (int64_t row = 0; row < sizes[i]; row += length > kUnit ? length : sizes[i])
      for (int64_t at = row, end = length > kUnit ? row + length : sizes[i]; at < end; at += step)
        units.push_back({i, at, std::min(at + step, end), 0});
  }
  const auto sum = Best<T, R>::rows[processor::instruction_set()];
  teams::each(team(elements, threads), units.size(), [&](size_t u) {
    auto& [tensor, begin, end, part] = units[u];
    const T* from = static_cast<const T*>(x[tensor]);
    const R* weight = weights ? static_cast<const R*>(weights[tensor]) : nullptr;
    R* results = static_cast<R*>(to[tensor]);
    const int64_t length = lengths[tensor];
    if (length > kUnit)
      part = sum(from + begin, weight ? weight + begin % length : nullptr, end - begin);
    else
      for (int64_t at = begin; at < end; at += length) results[at / length] = R(sum(from + at, weight, length));
  });
  double total = 0;
  for (const auto& [tensor, begin, end, part] : units) {
    const int64_t length = lengths[tensor];
    if (length <= kUnit) continue;
    total = begin % length ? total + part : part;
    if (end % length == 0) static_cast<R*>(to[tensor])[begin / length] = R(total);
  }
}

template <class T, class R>
void of_columns_as(int64_t count, const void* const* x, const int64_t* sizes, const int64_t* lengths, void* const* to,
                   int threads) {
  struct Unit {
    int64_t tensor, begin, end;  // rows
    double* sums;
  };
  std::vector<Unit> units;
  std::vector<std::vector<double>> memory;
  int64_t elements = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (!sizes[i]) continue;
    elements += sizes[i];
    const int64_t rows = sizes[i] / lengths[i], step = chains_of_part(rows, lengths[i]) * kRowChain;
    for (int64_t begin = 0; begin < rows; begin += step) {
      memory.emplace_back(lengths[i]);
      units.push_back({i, begin, std::min(rows, begin + step), memory.back().data()});
    }
  }
  const auto add = Best<T, R>::cols[processor::instruction_set()];
  teams::each(team(elements, threads), units.size(), [&](size_t u) {
    const auto& [tensor, begin, end, to_sums] = units[u];
    const int64_t length = lengths[tensor];
    for (int64_t c = 0; c < length; c += kStrip)
      add(static_cast<const T*>(x[tensor]) + begin * length + c, end - begin, length, std::min(kStrip, length - c),
          to_sums + c);
  });
  for (size_t u = 0; u < units.size(); ++u) {
    const bool more = u + 1 < units.size() && units[u + 1].tensor == units[u].tensor;
    const int64_t length = lengths[units[u].tensor];
    for (int64_t c = 0; c < length; ++c)
      if (more)
        units[u + 1].sums[c] += units[u].sums[c];
      else
        static_cast<R*>(to[units[u].tensor])[c] = R(units[u].sums[c]);
  }
}

// Of all tensors together: that at x[i * stride] ends at element ends[i] of their concatenation. Squares are taken in
// double, so that none of a float overflows. Each thread goes backwards through its part: a step that follows goes
// forwards, and finds what was read last in the cache.
template <class T>
double of_all_as(int64_t count, const void* const* x, int64_t stride, const int64_t* ends, int threads) {
  struct Unit {
    const T* x;
    int64_t size, end;
    double sum;
  };
  static thread_local std::vector<Unit> units;  // keeps its memory between steps
  units.clear();
  for (int64_t i = 0, first = 0; i < count; first = ends[i++])
    for (int64_t at = first; at < ends[i]; at += kUnit) {
      const int64_t end = std::min(at + kUnit, ends[i]);
      units.push_back({static_cast<const T*>(x[i * stride]) + (at - first), end - at, end, 0});
    }
  const int64_t elements = count ? ends[count - 1] : 0;
  const auto sum = Best<T, double>::rows[processor::instruction_set()];
  Unit *const all = units.data(), *const end = all + units.size();
  const auto first_of = [=](int64_t rank, int64_t ranks) {
    if (rank == ranks) return end;
    const auto is_before = [](const Unit& u, int64_t at) { return u.end <= at; };
    return std::lower_bound(all, end, elements / ranks * rank, is_before);
  };
  const auto work = [=](int64_t rank, int64_t ranks) {
    Unit* const begin = first_of(rank, ranks);
    for (Unit* u = first_of(rank + 1, ranks); u != begin; u->sum = sum(u->x, nullptr, u->size)) --u;
  };
  teams::run(team(elements, threads), work);
  double total = 0;
  for (const Unit& u : units) total += u.sum;
  return total;
}

inline double of_all(int parameter, int64_t count, const void* const* x, int64_t stride, const int64_t* ends,
                     int threads) {
  using namespace storage;
  const auto work = parameter == tables::kFloat64    ? of_all_as<double>
                    : parameter == tables::kBfloat16 ? of_all_as<bfloat16>
                    : parameter == tables::kFloat16  ? of_all_as<float16>
                                                     : of_all_as<float>;
  return work(count, x, stride, ends, threads);
}

inline void of_rows(int parameter, int64_t count, const void* const* x, const int64_t* sizes, const int64_t* lengths,
                    const void* const* weights, void* const* to, int threads) {
  using namespace storage;
  const auto work = parameter == tables::kFloat64    ? of_rows_as<double, double>
                    : parameter == tables::kBfloat16 ? of_rows_as<bfloat16, float>
                    : parameter == tables::kFloat16  ? of_rows_as<float16, float>
                                                     : of_rows_as<float, float>;
  work(count, x, sizes, lengths, weights, to, threads);
}

inline void of_columns(int parameter, int64_t count, const void* const* x, const int64_t* sizes,
                       const int64_t* lengths, void* const* to, int threads) {
  using namespace storage;
  const auto work = parameter == tables::kFloat64    ? of_columns_as<double, double>
                    : parameter == tables::kBfloat16 ? of_columns_as<bfloat16, float>
                    : parameter == tables::kFloat16  ? of_columns_as<float16, float>
                                                     : of_columns_as<float, float>;
  work(count, x, sizes, lengths, to, threads);
}

}  // namespace sums
