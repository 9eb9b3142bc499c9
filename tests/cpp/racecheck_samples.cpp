// Runs one sample kernel; under ThreadSanitizer the faulty ones must be reported (exit status 66)
// and the right ones must not. This shows that the racecheck of the real kernels can fail.
#include <cstdio>
#include <cstring>
#include <vector>

#include "sample_kernels.h"

namespace ard {
namespace {

/// Whether there is such a sample.
bool run(const char* name) {
  std::vector<float> data(64, 1.0f), out(2);
  std::vector<double> sums(4);
  const std::size_t shared = data.size() * sizeof(float);
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("right")) {
    emu::launch(sample::reverse_kernel<true, true>, 2, 64, shared, data.data(), 2);
    emu::launch(sample::rotate_warp_kernel<true>, 1, 64, 0, data.data());
    emu::launch(sample::block_sum_kernel<float>, 2, 64, 0, data.data(), out.data(), 64);
    emu::launch_in_clusters(sample::cluster_sum_kernel<true, true>, 4, 2, 32, 4 * sizeof(double),
                            sums.data(), 3);
  } else if (is("no_first_barrier")) {
    emu::launch(sample::reverse_kernel<false, true>, 1, 64, shared, data.data(), 2);
  } else if (is("no_second_barrier")) {
    emu::launch(sample::reverse_kernel<true, false>, 1, 64, shared, data.data(), 2);
  } else if (is("no_warp_barrier")) {
    emu::launch(sample::rotate_warp_kernel<false>, 1, 64, 0, data.data());
  } else if (is("no_cluster_barrier")) {
    emu::launch_in_clusters(sample::cluster_sum_kernel<true, false>, 2, 2, 32, 4 * sizeof(double),
                            sums.data(), 3);
  } else {
    return false;
  }
  return true;
}

}  // namespace
}  // namespace ard

int main(int argc, char** argv) {
  try {
    if (argc == 2 && ard::run(argv[1])) return 0;
  } catch (const ard::emu::LaunchError& fault) {  // a race may end in one
    std::fprintf(stderr, "%s\n", fault.what());
    return 1;
  }
  std::fprintf(stderr,
               "usage: %s right|no_first_barrier|no_second_barrier|no_warp_barrier|"
               "no_cluster_barrier\n",
               argv[0]);
  return 2;
}
