// Division by a number that the host knows before the launch: three instructions of a GPU instead
// of about sixteen (Granlund and Montgomery, "Division by invariant integers using multiplication",
// 1994, figure 4.1).
#pragma once

#include "common/config.h"

namespace ard {

struct Divisor {
  uint32_t number, multiplier, shift;
};

// number: from 1 to 2^31.
inline Divisor divisor(int64_t number) {
  const uint64_t d = uint64_t(number);
  uint32_t shift = 0;
  while (uint64_t(1) << shift < d) ++shift;
  const uint64_t multiplier = (uint64_t(1) << 32) * ((uint64_t(1) << shift) - d) / d + 1;
  return Divisor{uint32_t(d), uint32_t(multiplier), shift};
}

// value / by.number for a value below 2^31, where the sum below does not overflow.
ARD_HD uint32_t quotient(uint32_t value, const Divisor& by) {
  return (uint32_t(uint64_t(value) * by.multiplier >> 32) + value) >> by.shift;
}

struct Divided {
  uint32_t quotient, remainder;
};

ARD_HD Divided divided(uint32_t value, const Divisor& by) {
  const uint32_t whole = quotient(value, by);
  return Divided{whole, value - whole * by.number};
}

}  // namespace ard
