// Runs the kernels of csrc/cuda.cu on the host, a lane after the other: what the launches of optim/adan_optim/engine/cuda.py
// do, with the arguments that it gives them. A line KERNELS(...) for each instance is appended.
#include <algorithm>
#include <cstddef>
#include <iterator>
#include <vector>

#define __device__
#include "cuda.cu"

extern "C" {
int64_t first_block = 0;  // of the step kernel; the blocks before it are left out
}

template <class T>
const T& as(const void* argument) {
  return *static_cast<const T*>(argument);
}

extern "C" void upload(int64_t blocks, int64_t threads, void** a) {
  for (int64_t i = 0; i < blocks * threads; ++i)
    if (i < as<int64_t>(a[1])) as<uint64_t*>(a[0])[i] = as<kernels::Words>(a[2]).word[i];
}

template <class Kernel, class Hyper>
void prepare(int64_t blocks, int64_t threads, void** a) {
  using namespace kernels;
  for (int64_t i = 0; i < blocks * threads; ++i)
    if (i < as<int64_t>(a[2]))
      Kernel::prepare(as<Work>(a[0]), as<int64_t>(a[1]), i, as<Hyper>(a[3]), as<Number>(a[4]),
                      as<double>(a[5]), as<Number>(a[6]), as<Number>(a[7]), as<Gradients>(a[8]));
}

template <class Kernel, bool whole>
void step_of_tile(const typename Kernel::Chunk& chunk, kernels::Tile tile, bool skip) {
  using Lane = kernels::Lane<Kernel, whole>;
  std::vector<Lane> lanes;
  for (int i = 0; i < kernels::kWarp; ++i) lanes.emplace_back(chunk, tile, i);
  if (skip) {
    for (Lane& lane : lanes) lane.skip();
    return;
  }
  for (Lane& lane : lanes) lane.update();
  for (int j = 0; Kernel::coded && j < Kernel::Rule::states; ++j) {
    uint32_t top = 0;
    for (Lane& lane : lanes) top = std::max(top, lane.top[j]);
    const float factor = lanes[j].encode_factor(top);
    for (Lane& lane : lanes) lane.top[j] = top, lane.factor[j] = factor;
  }
  for (size_t j = 0; Kernel::summed && j < std::size(lanes[0].sum); ++j)
    for (int i = 1; i < kernels::kWarp; ++i) lanes[0].sum[j] += lanes[i].sum[j];
  for (Lane& lane : lanes) lane.store_sums();
  for (Lane& lane : lanes) lane.store_all();
}

template <class Kernel>
void step(int64_t blocks, int64_t threads, void** a) {
  using namespace kernels;
  const Work work = as<Work>(a[0]);
  const Number found_inf = as<Number>(a[1]);
  const bool skip = found_inf.at && *found_inf != 0;
  for (int64_t block = first_block; block < blocks; ++block) {
    typename Kernel::Chunk chunk(work, block);
    for (int i = 0; Kernel::noisy && i < kBlock; ++i) chunk.make_noise(i);
    for (int warp = 0; warp < threads / kWarp; ++warp)
      for (int turn = 0; turn < kTurns; ++turn) {
        const Tile tile(chunk.size, chunk.number, turn, warp);
        if (tile.count == 0) break;
        const bool whole = Kernel::aligned(chunk) && tile.count == kBlock;
        (whole ? step_of_tile<Kernel, true> : step_of_tile<Kernel, false>)(chunk, tile, skip);
      }
  }
}

#define KERNELS(NAME, RULE, ...)                                                       \
  using NAME = kernels::Kernel<rules::RULE, __VA_ARGS__>;                              \
  extern "C" void NAME##_prepare(int64_t blocks, int64_t threads, void** arguments) {  \
    prepare<NAME, rules::RULE::Hyper>(blocks, threads, arguments);                     \
  }                                                                                    \
  extern "C" void NAME##_step(int64_t blocks, int64_t threads, void** arguments) {     \
    step<NAME>(blocks, threads, arguments);                                            \
  }
