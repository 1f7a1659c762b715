// Teams of threads: OpenMP's, so that those are used that torch has started, or else new ones of the standard library.
#pragma once

#ifdef _OPENMP
#include <omp.h>
#else
#include <functional>
#include <system_error>
#include <thread>
#include <vector>
#endif

#include <cstddef>

namespace teams {

#ifdef _OPENMP
constexpr const char* kKind = "OpenMP";
#else
constexpr const char* kKind = "std::thread";
#endif

// Calls work(rank, ranks) once for each rank, in as many threads as the team has or, at worst, in fewer.
template <class Work>
void run(int team, const Work& work) {
  if (team == 1) return work(0, 1);
#ifdef _OPENMP
#pragma omp parallel num_threads(team)
  work(omp_get_thread_num(), omp_get_num_threads());
#else
  std::vector<std::thread> others;
  others.reserve(team);
  int rank = 1;
  try {
    for (; rank < team; ++rank) others.emplace_back(std::cref(work), rank, team);
  } catch (const std::system_error&) {  // the system has no more: this thread does the rest
  }
  work(0, team);
  for (; rank < team; ++rank) work(rank, team);
  for (std::thread& thread : others) thread.join();
#endif
}

// Calls work(i) for i = 0 .. count - 1, neighbours in one thread.
template <class Work>
void each(int team, size_t count, const Work& work) {
  run(team, [&](size_t rank, size_t ranks) {
    for (size_t i = count * rank / ranks; i < count * (rank + 1) / ranks; ++i) work(i);
  });
}

}  // namespace teams
