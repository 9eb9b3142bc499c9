// What cuda/device.h defines, from the driver.
#pragma once

#include "cuda/sample_plan.h"
#include "driver/by_name.h"

namespace ard::cuda {

inline int64_t attribute_of_device(int attribute) {
  int value = 0;
  driver::check(driver::api().cuDeviceGetAttribute(&value, attribute, driver::current_device()),
                "an attribute of the device");
  return value;
}

inline int64_t max_dynamic_shared(int64_t static_bytes) {
  return attribute_of_device(driver::kMaxSharedPerBlock) - static_bytes;
}

// An NVRTC that is older than the device compiles older code, so the code is asked here too.
template <const char* kSource, auto kKernel>
SampleDevice sample_device(Stream stream) {
  const bool clusters = attribute_of_device(driver::kClusterLaunch) &&
                        driver::ByName<kSource, kKernel>::kernel.code_arch(stream) >= kClusterCode;
  return SampleDevice{attribute_of_device(driver::kMaxSharedPerBlock),
                      attribute_of_device(driver::kMultiprocessors), clusters};
}

}  // namespace ard::cuda
