// Sums of squares of many tensors under CUDA, in the order of sums_order.h: the bits are those of the CPU.
// optim/adan_optim/engine/cuda_sums.py launches it: `rows`, or `tiles` for rows and columns, which read each element once, and
// `finish`, which adds up what several blocks have found out about one row or column. There are no atomics.
//
// A team of kLanes threads adds up a chunk, each thread a chain of it, so that the loads of a team are one run of
// memory, aligned or not.
#pragma once

#include "sums_order.h"

namespace sums {

using storage::load;

constexpr int kWarp = 32, kThreads = 128, kTeams = kThreads / kLanes;
constexpr int kChunks = kUnit / kChain;             // whose sums a block of `rows` adds up
constexpr int kBatch = 8;                           // elements that a thread loads at once where a chunk is not whole
constexpr int kPitch = kChain + kLanes;             // the teams of a warp then store to different banks
constexpr int kFinishers = kWarp * int(kParts);     // threads of a block of `finish`: a warp for each part

constexpr int kTensors = 480;  // of a launch: its arguments fit into 4 kB; known to cuda_sums.py

// A tensor as rows of `length` elements. cuda_sums.py makes the list.
struct Entry {
  int64_t rows, length;
  int64_t row, column;     // where its own begin among the rows and columns of all tensors
  int64_t partial, chain;  // where its own begin among the partial sums of rows, and the chains of columns
  int64_t end, finished;   // blocks of the first launch and of `finish`, up to here
};

struct Work {
  const Entry* entries;
  int64_t count;
  const void* weights;    // on the squares, for each column; or null
  void *rows, *columns;   // the results
  double* partials;       // sums of the parts of a row, where it has several: kUnit elements, or a chunk under `tiles`
  void* chains;           // sums of the chains of a column, where it has several
};

struct Addresses {
  const void* x[kTensors];
};

struct Block {
  Entry entry;
  int64_t tensor;
  uint32_t number;  // of the block in the tensor

  template <int64_t Entry::*end>
  static __device__ Block find(const Work& work, int64_t number) {
    int64_t i = 0, last = work.count - 1;
    while (i < last) {
      const int64_t middle = (i + last) / 2;
      if (work.entries[middle].*end > number)
        last = middle;
      else
        i = middle + 1;
    }
    return {work.entries[i], i, uint32_t(number - (i ? work.entries[i - 1].*end : 0))};
  }

  // Of a launch on the tensors from `first` on.
  static __device__ Block of_launch(const Work& work, int64_t first) {
    return find<&Entry::end>(work, blockIdx.x + (first ? work.entries[first - 1].end : 0));
  }
};

// The sum of a chunk's squares, by a team. All lanes of the warp have to be here.
template <bool weighted, bool kept, class T, class R>
__device__ __forceinline__ R chunk(const T* x, const R* weights, R* squares, int count, int lane) {
  R sum = 0;
  const auto add = [&](T x, int i) {
    const R value = load(x), square = weighted ? value * value * weights[i] : value * value;
    if (kept) squares[i] = square;
    sum += square;
  };
  if (count == kChain) {
    T some[kChain / kLanes];
#pragma unroll
    for (int k = 0; k < kChain / kLanes; ++k) some[k] = x[k * kLanes + lane];
#pragma unroll
    for (int k = 0; k < kChain / kLanes; ++k) add(some[k], k * kLanes + lane);
  } else {
#pragma unroll 1
    for (int at = lane; at < count; at += kBatch * kLanes) {
      T some[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; ++k) some[k] = at + k * kLanes < count ? x[at + k * kLanes] : T{};
#pragma unroll
      for (int k = 0; k < kBatch; ++k)
        if (at + k * kLanes < count) add(some[k], at + k * kLanes);
    }
  }
#pragma unroll
  for (int distance = kLanes / 2; distance; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}

// A block has some whole rows, or a part of one.
template <class T, class R>
__device__ __forceinline__ void rows(const Work& work, int64_t first, const Addresses& x) {
  __shared__ R sums[kChunks];
  const Block block = Block::of_launch(work, first);
  const Entry& entry = block.entry;
  const uint32_t parts = pieces(entry.length, kUnit);
  int64_t row = block.number, begin = 0, n = entry.length, rows = 1;
  if (parts > 1) {
    row = block.number / parts;
    begin = block.number % parts * kUnit;
    n = n - begin < kUnit ? n - begin : kUnit;
  }
  const uint32_t chunks = pieces(n, kChain);  // of a row
  if (parts == 1) {
    const int64_t most = kChunks / chunks;
    row *= most;
    rows = entry.rows - row < most ? entry.rows - row : most;
  }
  const T* from = static_cast<const T*>(x.x[block.tensor - first]) + row * entry.length + begin;
  const R* weights = static_cast<const R*>(work.weights);
  if (weights) weights += entry.column + begin;
  const int team = threadIdx.x / kLanes, lane = threadIdx.x % kLanes, all = int(rows) * chunks;
#pragma unroll 1
  for (int at = 0; at < all; at += kTeams) {
    const uint32_t i = at + team, r = i / chunks, c = (i - r * chunks) * kChain;
    const int count = i >= all ? 0 : n - c < kChain ? int(n - c) : int(kChain);
    const T* some = from + r * entry.length + c;
    const R sum = weights ? chunk<true, false>(some, weights + c, (R*)nullptr, count, lane)
                          : chunk<false, false>(some, weights, (R*)nullptr, count, lane);
    if (lane == 0 && count) sums[i] = sum;
  }
  __syncthreads();
  if (threadIdx.x < rows) {
    double sum = 0;
    for (int i = 0; i < chunks; ++i) sum += sums[threadIdx.x * chunks + i];
    if (parts > 1)
      work.partials[entry.partial + block.number] = sum;
    else
      static_cast<R*>(work.rows)[entry.row + row + threadIdx.x] = R(sum);
  }
}

// A block has a chunk of each of kRowChain rows.
template <class T, class R>
__device__ __forceinline__ void tiles(const Work& work, int64_t first, const Addresses& x) {
  __shared__ R squares[kTeams][kPitch];
  const Block block = Block::of_launch(work, first);
  const Entry& entry = block.entry;
  const uint32_t chunks = pieces(entry.length, kChain);  // of a row
  const int64_t chain = block.number / chunks, part = block.number % chunks;
  const int64_t row = chain * kRowChain, column = part * kChain;
  const int rows = entry.rows - row < kRowChain ? entry.rows - row : kRowChain;
  const int count = entry.length - column < kChain ? entry.length - column : kChain;
  const T* from = static_cast<const T*>(x.x[block.tensor - first]) + row * entry.length + column;
  const int team = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  R strip[kChain / kThreads] = {};
#pragma unroll 1
  for (int at = 0; at < rows; at += kTeams) {
    const int r = at + team;
    const R sum = chunk<false, true>(from + r * entry.length, (const R*)nullptr, squares[team], r < rows ? count : 0, lane);
    if (lane == 0 && r < rows) {
      if (chunks > 1)
        work.partials[entry.partial + (row + r) * chunks + part] = sum;
      else
        static_cast<R*>(work.rows)[entry.row + row + r] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kChain / kThreads; ++k) {
      const int c = k * kThreads + threadIdx.x;
      if (c >= count) break;
#pragma unroll
      for (int j = 0; j < kTeams; ++j)
        if (at + j < rows) strip[k] += squares[j][c];
    }
    __syncthreads();
  }
  R* to = entry.rows > kRowChain ? static_cast<R*>(work.chains) + entry.chain + chain * entry.length
                                 : static_cast<R*>(work.columns) + entry.column;
#pragma unroll
  for (int k = 0; k < kChain / kThreads; ++k) {
    const int c = k * kThreads + threadIdx.x;
    if (c < count) to[column + c] = strip[k];
  }
}

// A warp adds up the parts of a row. A block adds up the chains of kWarp columns.
template <class R>
__device__ __forceinline__ void finish(const Work& work, bool tiled) {
  __shared__ double parts[kParts][kWarp];
  const Block block = Block::find<&Entry::finished>(work, blockIdx.x);
  const Entry& entry = block.entry;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t count = pieces(entry.length, tiled ? kChain : kUnit);  // parts of a row
  const int64_t row_blocks = count == 1 ? 0 : pieces(entry.rows, kParts);
  if (block.number < row_blocks) {
    const int64_t row = block.number * kParts + warp;
    if (row >= entry.rows) return;
    const double* from = work.partials + entry.partial + row * count;
    double total = 0, unit = 0;
    for (int64_t at = 0; at < count; at += kWarp) {
      if (tiled && at % kChunks == 0) total += unit, unit = 0;
      const double one = at + lane < count ? from[at + lane] : 0;
#pragma unroll
      for (int i = 0; i < kWarp; ++i) unit += __shfl_sync(~0u, one, i);
    }
    if (lane == 0) static_cast<R*>(work.rows)[entry.row + row] = R(total + unit);
    return;
  }
  const int64_t column = (block.number - row_blocks) * kWarp + lane, most = chains_of_part(entry.rows, entry.length);
  const int64_t chains = pieces(entry.rows, kRowChain), end = (warp + 1) * most < chains ? (warp + 1) * most : chains;
  double sum = 0;
  if (column < entry.length) {
    const R* from = static_cast<const R*>(work.chains) + entry.chain + column;
#pragma unroll 8
    for (int64_t i = warp * most; i < end; ++i) sum += from[i * entry.length];
  }
  parts[warp][lane] = sum;
  __syncthreads();
  if (warp || column >= entry.length) return;
  double total = 0;
  for (int i = 0; i < kParts; ++i) total += parts[i][lane];
  static_cast<R*>(work.columns)[entry.column + column] = R(total);
}

// cuda_sums.py appends a line with this: name, type of the elements, type of the arithmetic.
#define SUMS(NAME, T, R)                                                                                         \
  extern "C" __global__ void __launch_bounds__(sums::kThreads, 16 / sizeof(R))                                   \
      NAME##_rows(sums::Work work, int64_t first, sums::Addresses x) {                                           \
    sums::rows<T, R>(work, first, x);                                                                            \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(sums::kThreads, 16 / sizeof(R))                                   \
      NAME##_tiles(sums::Work work, int64_t first, sums::Addresses x) {                                          \
    sums::tiles<T, R>(work, first, x);                                                                           \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(sums::kFinishers) NAME##_finish(sums::Work work, int64_t tiled) { \
    sums::finish<R>(work, tiled);                                                                                \
  }

}  // namespace sums
