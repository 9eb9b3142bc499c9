// The scalar maths of csrc/core on the host, against independent formulas in double.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>

#include "check.h"
#include "core/crop_flip_math.h"
#include "core/half.h"
#include "core/kd_math.h"
#include "core/math.h"
#include "core/norm_math.h"
#include "core/pgd_math.h"
#include "core/philox.h"

namespace {

using namespace ard;

const float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof(float)) == 0; }
bool same_value(float a, float b) { return (a != a && b != b) || same_bits(a, b); }

// Known answers of Random123 (kat_vectors, "philox4x32 10").
void test_philox() {
  struct Case {
    uint32_t counter[4], key[2], expected[4];
  };
  const Case cases[] = {
      {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}},
      {{0xffffffffu, 0xffffffffu, 0xffffffffu, 0xffffffffu},
       {0xffffffffu, 0xffffffffu},
       {0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}},
      {{0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
       {0xa4093822u, 0x299f31d0u},
       {0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u}},
  };
  for (const Case& c : cases) {
    PhiloxBlock counter;
    std::memcpy(counter.v, c.counter, sizeof(counter.v));
    const PhiloxBlock out = philox4x32_10(counter, uint64_t(c.key[1]) << 32 | c.key[0]);
    for (int i = 0; i < 4; ++i) CHECK(out.v[i] == c.expected[i]);
  }
  // The counter's words: element group in the low half, sample id in the high half.
  const PhiloxBlock direct = philox4x32_10({{3, 1, 7, 2}}, 99);
  const PhiloxBlock named = philox_for_group(99, (2ull << 32) | 7, (1ull << 32) | 3);
  CHECK(std::memcmp(direct.v, named.v, sizeof(direct.v)) == 0);
}

// The value of a small float with `exponent_bits` and `fraction_bits`, by the IEEE definition.
double decode(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t fraction = bits & ((1u << fraction_bits) - 1);
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double sign = bits >> (exponent_bits + fraction_bits) ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * HUGE_VAL;
  }
  const double significand = exponent ? (1u << fraction_bits) + fraction : fraction;
  return sign * std::ldexp(significand, std::max(exponent, 1) - bias - fraction_bits);
}

template <typename T>
void test_small_float(int exponent_bits, int fraction_bits) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const double expected = decode(bits, exponent_bits, fraction_bits);
    const float value = to_float(T{uint16_t(bits)});
    if (expected != expected) {
      CHECK(value != value);
      CHECK(to_float(from_float<T>(value)) != to_float(from_float<T>(value)));
      continue;
    }
    CHECK(same_bits(value, static_cast<float>(expected)));
    CHECK(from_float<T>(value).bits == bits);
    // Half way to the next larger magnitude: exactly there to even, beside it to the nearer one.
    const uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
    if ((bits & 0x7fffu) == infinity) continue;
    const double above = decode((bits & 0x7fffu) + 1, exponent_bits, fraction_bits);
    const double here = std::fabs(expected);
    const double step = std::isinf(above)
                            ? here - decode((bits & 0x7fffu) - 1, exponent_bits, fraction_bits)
                            : above - here;
    const float middle = std::copysign(static_cast<float>(here + step / 2), value);
    if (std::isinf(middle)) continue;  // bfloat16's largest: half way is beyond float's range
    CHECK(from_float<T>(middle).bits == (bits & 1 ? bits + 1 : bits));
    CHECK(from_float<T>(std::nextafter(middle, 0.0f)).bits == bits);
    CHECK(from_float<T>(std::nextafter(middle, std::copysign(kInf, value))).bits == bits + 1);
  }
  CHECK(std::isinf(to_float(from_float<T>(kInf))) && std::isinf(to_float(from_float<T>(FLT_MAX))));
  CHECK(same_bits(to_float(from_float<T>(-0.0f)), -0.0f));
}

/// Error of `value` in units of the last place of the float nearest to `exact`.
double ulps(float value, double exact) {
  const float nearest = static_cast<float>(exact);
  const double ulp = std::nextafter(std::fabs(nearest), kInf) - std::fabs(nearest);
  return std::fabs(value - exact) / ulp;
}

void test_exp() {
  double worst = 0;
  for (float x = -87.0f; x <= 88.0f; x += 1.7e-4f) {
    worst = std::max(worst, ulps(exp_f32(x), std::exp(static_cast<double>(x))));
  }
  for (float x = 1e-8f; x < 0.5f; x *= 1.001f) {
    worst = std::max(worst, ulps(exp_f32(x), std::exp(static_cast<double>(x))));
    worst = std::max(worst, ulps(exp_f32(-x), std::exp(-static_cast<double>(x))));
  }
  std::printf("exp_f32: %.3f ulp\n", worst);
  CHECK(worst < 1.5);
  CHECK(exp_f32(0.0f) == 1.0f && exp_f32(-0.0f) == 1.0f);
  CHECK(exp_f32(-87.1f) == 0.0f && exp_f32(-1e30f) == 0.0f && exp_f32(-kInf) == 0.0f);
  CHECK(std::isnan(exp_f32(kNan)) && std::isnan(exp_f32(-kNan)));
}

void test_log() {
  double worst = 0;
  for (uint32_t bits = 0x00800000u; bits < 0x7f800000u; bits += 977) {
    const float x = bits_to_float(bits);
    const double exact = std::log(static_cast<double>(x));
    if (exact != 0) worst = std::max(worst, ulps(log_exact_ops(x), exact));
  }
  std::printf("log_exact_ops: %.3f ulp\n", worst);
  CHECK(worst < 2.5);
  CHECK(log_exact_ops(1.0f) == 0.0f);
}

// Every value that uniform_symmetric can give, through the normal quantile and back.
void test_uniform_and_normal() {
  double worst = 0, previous = -HUGE_VAL;
  for (uint32_t k = 0; k < (1u << 23); ++k) {
    const float v = uniform_symmetric(k << 9);
    if (k % 4096 == 0) {
      CHECK(static_cast<double>(v) == (2.0 * k + 1.0) / 8388608.0 - 1.0);
      CHECK(same_bits(v, uniform_symmetric((k << 9) | 0x1ff)));  // the low 9 bits are not used
      CHECK(same_bits(-v, uniform_symmetric(((1u << 23) - 1 - k) << 9)));
    }
    if (k % 64 == 0 || k < 1024) {
      const double z = normal_from_symmetric(v);
      // dz = dv / (2 * density); compared in z, where an error matters.
      const double density = std::exp(-z * z / 2) * 0.3989422804014327;
      const double back = v < 0 ? std::erfc(-z * 0.7071067811865476) - 1 - v
                                : 1 - std::erfc(z * 0.7071067811865476) - v;
      worst = std::max(worst, std::fabs(back) / (2 * density) / std::max(1e-3, std::fabs(z)));
      CHECK(z > previous - 1e-6);
      previous = z;
    }
  }
  std::printf("normal_from_symmetric: relative error %.2e\n", worst);
  CHECK(worst < 2e-6);
}

// torch.clamp, torch.minimum and torch.maximum: a NaN on either side is the result.
float torch_min(float a, float b) { return std::isnan(a) || std::isnan(b) ? kNan : std::min(a, b); }
float torch_max(float a, float b) { return std::isnan(a) || std::isnan(b) ? kNan : std::max(a, b); }

void test_step() {
  const float values[] = {0.0f,   -0.0f, 1e-45f, -1e-45f, FLT_MIN,  -FLT_MIN, 0.25f, -0.25f,
                          0.999f, 1.0f,  1.5f,   FLT_MAX, -FLT_MAX, kInf,     -kInf, kNan};
  for (float x : values) {
    for (float x_adv : values) {
      for (float grad : values) {
        for (float step : {2 / 255.0f, -2 / 255.0f, 0.0f, 1e-45f}) {
          for (float eps : {8 / 255.0f, 0.0f, 3.0f}) {
            const float direction = grad > 0 ? 1.0f : grad < 0 ? -1.0f : 0.0f;
            const float stepped = x_adv + direction * step;
            const float projected = torch_min(torch_max(stepped, x - eps), x + eps);
            const float expected = torch_min(torch_max(projected, 0.0f), 1.0f);
            const float got = pgd_linf_update(x_adv, grad, x, step, eps, 0.0f, 1.0f);
            CHECK(expected == got || (std::isnan(expected) && std::isnan(got)));
          }
        }
      }
    }
  }
  CHECK(same_value(random_start_element(0.5f, 0, false, 0.1f, 0, 0, 1),
                   0.5f + 0.1f * (0x1p-23f - 1)));
  CHECK(random_start_element(0.0f, 0, false, 0.1f, 0, 0, 1) == 0.0f);
  CHECK(random_start_element(0.0f, 0, false, 0.1f, 0, -kInf, kInf) < -0.0999f);
  CHECK(std::isnan(random_start_element(kNan, 0, false, 0.1f, 0, 0, 1)));
}

// q * (e^x - 1) and q * phi(x) on both sides of the switch from the polynomial to the direct form.
void test_kd_terms() {
  for (const KdRange range : {KdRange::near, KdRange::middle}) {
    KdRow row = kd_row_begin(0.0f, 0.0f, 1.0f, 1.0f);
    kd_row_set_sums(row, KdSums{1.0f, 0.0f, 0.0f, 0.0f});
    row.range = range;
    const float limit = range == KdRange::near ? 0.5f : 9.0f;
    double worst_term = 0, worst_diff = 0;
    for (float x = -limit; x < limit; x += 1.3e-3f) {
      const KdTerm t = kd_term(row, x, 0.0f);
      const double exact = std::expm1(static_cast<double>(x));
      CHECK(t.q == 1.0f);
      worst_diff =
          std::max(worst_diff, std::fabs(t.diff - exact) / std::max(std::fabs(exact), 1e-30));
      if (std::fabs(x) > 1e-2) {  // below, exact's own subtraction loses digits
        worst_term = std::max(worst_term, std::fabs(t.term - (exact - x)) / (exact - x));
      }
    }
    std::printf("kd_term: relative error %.2e (diff), %.2e (term)\n", worst_diff, worst_term);
    CHECK(worst_diff < 1e-6 && worst_term < 3e-6);
  }
  // Student and teacher that differ in the last bit of large logits, after a shift of 1000.
  const KdRow row = kd_row_begin(1180.0f, 180.0f, 1.0f, 1.0f);
  float gap;
  kd_weigh(row, 1000.0f + 0x1p-14f, 0x1p-20f, gap);
  CHECK(gap == 0x1p-14f - 0x1p-20f);
}

void test_finite_gradient() {
  CHECK(same_bits(finite_gradient(kNan), 0.0f) && finite_gradient(-kNan) == 0.0f);
  CHECK(finite_gradient(kInf) == FLT_MAX && finite_gradient(-kInf) == -FLT_MAX);
  for (const float value : {0.0f, -0.0f, 1e-45f, -1e-39f, 1.5f, -FLT_MAX}) {
    CHECK(same_bits(finite_gradient(value), value));
  }
}

// A step along a gradient of one entry, whatever its size, has the length asked for.
void test_normed_step() {
  for (int exponent = -149; exponent <= 127; ++exponent) {
    const float grad = std::ldexp(exponent < -120 ? 1.0f : 1.37f, exponent);
    for (const double factor : {0.2, -1.0, 1e-3}) {
      const NormedStep by = normed_step(double(grad), factor);
      CHECK(std::fabs(normed(grad, by) - factor) <= 1.2e-7 * std::fabs(factor));
      CHECK(std::isnormal(by.scale) && std::isnormal(by.step));
    }
  }
  // Norms of many entries go beyond the floats.
  const NormedStep large = normed_step(300.0 * FLT_MAX, 1.0);
  CHECK(std::fabs(normed(FLT_MAX, large) * 300.0 - 1.0) <= 3e-7);
  CHECK(normed_step(0.0, 0.5).step == 0.0f && normed(0.0f, normed_step(0.0, 0.5)) == 0.0f);
}

void test_round_down() {
  for (const double value : {0.1, 0.5, 1.0, 1.0 - 1e-12, 1e-30, 1.0 / 3.0, 0.99999999}) {
    const float rounded = round_down(value);
    CHECK(double(rounded) <= value);
    CHECK(double(std::nextafter(rounded, 2.0f)) > value);
  }
  CHECK(round_down(0.0) == 0.0f);
}

// The sum never lies further from x than delta says, and never an ulp nearer than it must.
void test_add_towards() {
  uint32_t state = 1;
  for (int i = 0; i < 300000; ++i) {
    const auto draw = [&] {
      state = state * 1664525u + 1013904223u;
      return static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
    };
    const float x = i % 7 == 0 ? 0.0f : draw() * (i % 3 ? 1.0f : 1e-3f);
    const float delta = i % 11 == 0 ? -x : draw() * (i % 2 ? 0.03f : 2.0f);
    const float sum = add_towards(x, delta);
    const double moved = double(sum) - double(x);
    CHECK(std::fabs(moved) <= std::fabs(double(delta)) * (1 + 6e-8));
    const double spacing = std::nextafter(std::fabs(x + delta), kInf) - std::fabs(x + delta);
    CHECK(std::fabs(moved - double(delta)) <= 1.0001 * spacing);
  }
  CHECK(add_towards(0.5f, 0.0f) == 0.5f && std::isnan(add_towards(0.5f, kNan)));
  CHECK(add_towards(0.25f, -0.25f) == 0.0f && add_towards(1.0f, kInf) == kInf);
}

void test_l2_step() {
  // d = (3, 0), g = (0, 2), a step of 4 to (3, 4), on a ball of 2.5: halved.
  const L2Step by = l2_step(L2Sums{4.0, 0.0, 9.0}, 4.0f, 2.5f);
  CHECK(by.shrink == 0.5f);
  CHECK(l2_update(3.0f, 0.0f, 0.0f, by, -9.0f, 9.0f) == 1.5f);
  CHECK(std::fabs(l2_update(0.0f, 2.0f, 0.0f, by, -9.0f, 9.0f) - 2.0f) <= 3e-7f);
  CHECK(l2_update(0.0f, 2.0f, 0.0f, by, -9.0f, 1.0f) == 1.0f);
  CHECK(l2_step(L2Sums{4.0, 0.0, 9.0}, 4.0f, 5.5f).shrink == 1.0f);
  CHECK(l2_step(L2Sums{0.0, 0.0, 0.0}, 4.0f, 0.0f).shrink == 1.0f);   // nothing to shrink
  CHECK(l2_step(L2Sums{1.0, -2.0, 4.0}, 2.0f, 1.0f).shrink == 1.0f);  // back to the image itself
  CHECK(!(l2_step(L2Sums{1.0, kNan, kNan}, 2.0f, 1.0f).shrink >= 0.0f));
  CHECK(l2_step(L2Sums{1.0, 0.0, 1.0}, 0.0f, 0.0f).shrink == 0.0f);
}

void test_loss_wins() {
  CHECK(loss_wins(2.0f, 1.0f, false) && !loss_wins(1.0f, 1.0f, false) &&
        !loss_wins(0.0f, 1.0f, false));
  CHECK(loss_wins(0.0f, 1.0f, true) && !loss_wins(1.0f, 1.0f, true) &&
        !loss_wins(2.0f, 1.0f, true));
  for (const bool lower : {false, true}) {
    CHECK(!loss_wins(kNan, 1.0f, lower) && !loss_wins(kNan, kNan, lower));
    CHECK(loss_wins(kInf, kNan, lower) && loss_wins(-kInf, kNan, lower));
  }
}

// Every byte over every number of levels: the bits of the division, with and without contraction.
void test_to_unit() {
  for (int levels = 1; levels <= 255; ++levels) {
    float high, low;
    unit_scale(levels, &high, &low);
    for (int value = 0; value <= 255; ++value) {
      const float exact = static_cast<float>(value) / static_cast<float>(levels);
      const auto v = static_cast<float>(value);
      CHECK(same_bits(to_unit(static_cast<uint8_t>(value), high, low), exact));
      CHECK(same_bits(std::fma(v, high, v * low), exact));
      CHECK(same_bits(std::fma(v, low, v * high), exact));
    }
  }
}

void test_bounded() {
  for (const uint32_t span : {1u, 2u, 9u, 65535u}) {
    CHECK(bounded(0, span) == 0 && bounded(0xffffffffu, span) == span - 1);
    // How many of the 2^32 inputs give each value: the first one of each, subtracted.
    uint64_t first = 0;
    for (uint64_t value = 1; value <= span; ++value) {
      const uint64_t next = ((value << 32) + span - 1) / span;
      if (value < span) CHECK(bounded(static_cast<uint32_t>(next), span) == value);
      CHECK(bounded(static_cast<uint32_t>(next - 1), span) == value - 1);
      const double share = static_cast<double>(next - first);
      CHECK(std::fabs(share - 4294967296.0 / span) < 1.0);
      first = next;
    }
  }
}

void test_views() {
  for (const int padding : {0, 1, 4, 32767}) {
    const int64_t span = 2 * padding + 1;
    CHECK(view_count(padding) == 2 * span * span);
    for (uint64_t id = 0; id < 500; ++id) {
      const int64_t number = draw_view(7, id, padding, true);
      CHECK(number >= 0 && number < view_count(padding));
      CHECK(draw_view(7, id, padding, false) == number / 2 * 2);
      const CropView view = read_view(number, padding);
      CHECK(std::abs(view.row) <= padding && std::abs(view.column) <= padding);
      CHECK(((view.row + padding) * span + view.column + padding) * 2 + view.flip == number);
    }
  }
}

}  // namespace

int main() {
  test_philox();
  test_small_float<f16>(5, 10);
  test_small_float<bf16>(8, 7);
  test_exp();
  test_log();
  test_uniform_and_normal();
  test_step();
  test_kd_terms();
  test_finite_gradient();
  test_normed_step();
  test_round_down();
  test_add_towards();
  test_l2_step();
  test_loss_wins();
  test_to_unit();
  test_bounded();
  test_views();
  return test::finish("test_core");
}
