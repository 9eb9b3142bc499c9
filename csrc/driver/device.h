// What cuda/device.h declares, from the driver.
#pragma once

#include "cuda/sample_plan.h"
#include "driver/api.h"

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

inline SampleDevice sample_device() {
  return SampleDevice{attribute_of_device(driver::kMaxSharedPerBlock),
                      attribute_of_device(driver::kMultiprocessors),
                      attribute_of_device(driver::kClusterLaunch) != 0};
}

}  // namespace ard::cuda
