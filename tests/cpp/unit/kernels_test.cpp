#include "workers/decode/kernels.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace stook::decode {
namespace {

/// The number that 16 bits stand for, from the definition of the format.
double half_value(std::uint16_t half) {
  const int exponent = half >> 10 & 0x1F;
  const int fraction = half & 0x3FF;
  const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                           : exponent == 31 ? (fraction == 0 ? INFINITY : NAN)
                                            : std::ldexp(1024 + fraction, exponent - 25);
  return (half & 0x8000) != 0 ? -magnitude : magnitude;
}

TEST(Half, EveryNumberComesBack) {
  for (int half = 0; half < 0x10000; ++half) {
    const double value = half_value(static_cast<std::uint16_t>(half));
    if (std::isnan(value)) continue;
    ASSERT_EQ(half_of(static_cast<float>(value)), half) << value;
  }
  EXPECT_TRUE(std::isnan(half_value(half_of(NAN))));
}

TEST(Half, RoundsToTheNearestAndTiesToEven) {
  for (int low = 0; low < 0x7BFF; ++low) {
    const double below = half_value(static_cast<std::uint16_t>(low));
    const double above = half_value(static_cast<std::uint16_t>(low + 1));
    const auto middle = static_cast<float>((below + above) / 2);
    ASSERT_EQ(half_of(middle), low % 2 == 0 ? low : low + 1) << middle;
    ASSERT_EQ(half_of(std::nextafter(middle, 0.0F)), low) << middle;
    ASSERT_EQ(half_of(std::nextafter(middle, INFINITY)), low + 1) << middle;
    ASSERT_EQ(half_of(-middle), half_of(middle) | 0x8000) << middle;
  }
  EXPECT_EQ(half_of(65519.996F), 0x7BFF);
  EXPECT_EQ(half_of(65520.0F), 0x7C00);
  EXPECT_EQ(half_of(INFINITY), 0x7C00);
}

struct StoreCase {
  const char* name;
  Kernels::Store* Kernels::* store;
  std::size_t channels;
  std::size_t element;
};

constexpr StoreCase kStores[] = {
    {"rgb u8", &Kernels::store_rgb_u8, 3, 1},     {"rgb f32", &Kernels::store_rgb_f32, 3, 4},
    {"rgb f16", &Kernels::store_rgb_f16, 3, 2},   {"gray u8", &Kernels::store_gray_u8, 1, 1},
    {"gray f32", &Kernels::store_gray_f32, 1, 4}, {"gray f16", &Kernels::store_gray_f16, 1, 2},
};

/// A row of random pixels, stored; behind the row, and between planes, nothing may change.
std::vector<std::uint8_t> stored(const Kernels& kernels, const StoreCase& a, std::size_t width,
                                 bool planes) {
  std::mt19937 random(static_cast<unsigned>(width));
  std::vector<std::uint8_t> pixels(width * 4 + kSlack);
  for (std::uint8_t& byte : pixels) byte = static_cast<std::uint8_t>(random());
  StoreScale scale{{1 / 58.4F, 1 / 57.1F, 1 / 57.4F, 0}, {-2.118F, -2.036F, -1.804F, 0}};
  const std::size_t gap = 12;
  const std::size_t plane = width * a.element + gap;
  std::vector<std::uint8_t> out(planes ? plane * a.channels : width * a.channels * a.element + gap,
                                0xA5);
  const StoreRow to{out.data(), planes ? static_cast<std::ptrdiff_t>(plane) : 0};
  (kernels.*a.store)(pixels.data(), width, scale, to);

  for (std::size_t x = 0; x < width; ++x) {
    for (std::size_t c = 0; c < a.channels; ++c) {
      const std::uint8_t byte = pixels[a.channels == 3 ? 4 * x + c : x];
      const float value = static_cast<float>(byte) * scale.scale[c] + scale.offset[c];
      const std::uint8_t* const at =
          out.data() + (planes ? c * plane + x * a.element : (x * a.channels + c) * a.element);
      std::uint8_t expected[4] = {byte};
      if (a.element == 4) std::memcpy(expected, &value, 4);
      const std::uint16_t half = half_of(value);
      if (a.element == 2) std::memcpy(expected, &half, 2);
      EXPECT_EQ(std::memcmp(at, expected, a.element), 0) << a.name << " " << x << " " << c;
    }
  }
  for (std::size_t i = 0; i < gap; ++i) {
    for (std::size_t c = 0; c < (planes ? a.channels : 1); ++c)
      EXPECT_EQ(out[(planes ? (c + 1) * plane : out.size()) - gap + i], 0xA5) << a.name;
  }
  return out;
}

TEST(Kernels, StoreRowsInEveryWay) {
  for (const StoreCase& a : kStores) {
    for (const bool planes : {false, true}) {
      for (std::size_t width = 1; width < 70; ++width) {
        const auto portable = stored(portable_kernels(), a, width, planes);
        if (avx2_kernels() == nullptr) continue;
        ASSERT_EQ(stored(*avx2_kernels(), a, width, planes), portable) << a.name << " " << width;
      }
    }
  }
}

TEST(Kernels, HalvesOfAVX2AreTheSame) {
  const Kernels* const avx2 = avx2_kernels();
  if (avx2 == nullptr) GTEST_SKIP() << "this processor has no AVX2 and F16C";
  // Factors from the smallest subnormal half to beyond the largest number.
  std::vector<std::uint8_t> pixels(256 + kSlack);
  for (std::size_t i = 0; i < 256; ++i) pixels[i] = static_cast<std::uint8_t>(i);
  for (int power = -34; power < 12; ++power) {
    StoreScale scale;
    scale.scale[0] = std::ldexp(1.37F, power);
    std::vector<std::uint16_t> one(256);
    std::vector<std::uint16_t> other(256);
    portable_kernels().store_gray_f16(pixels.data(), 256, scale, {one.data(), 0});
    avx2->store_gray_f16(pixels.data(), 256, scale, {other.data(), 0});
    ASSERT_EQ(one, other) << power;
  }
}

TEST(Kernels, SumsAtTheirLimitsDoNotOverflow) {
  // The widest that is blended with integers, of the brightest pixels, and overshooting ones.
  for (const Kernels* const kernels : {&portable_kernels(), avx2_kernels()}) {
    if (kernels == nullptr) continue;
    const std::vector<std::uint8_t> bright(64 + kSlack, 255);
    std::vector<const std::uint8_t*> rows(64, bright.data());
    std::vector<std::int16_t> weights(64, 1 << 14);  // of 20 bits: 64 of them are 1
    std::vector<std::int16_t> out(64 + kSlack);
    kernels->blend_rows(rows.data(), weights.data(), 64, 20, 64, out.data());
    for (std::size_t i = 0; i < 64; ++i) ASSERT_EQ(out[i], 255 << kFractionBits);
    // Weights of 8, and of -4, saturate instead of wrapping round.
    const std::int16_t large[] = {32767, 32767, -32768};
    kernels->blend_rows(rows.data(), large, 2, 13, 64, out.data());
    for (std::size_t i = 0; i < 64; ++i) ASSERT_EQ(out[i], INT16_MAX);
    kernels->blend_rows(rows.data(), large + 2, 1, 13, 64, out.data());
    for (std::size_t i = 0; i < 64; ++i) ASSERT_EQ(out[i], INT16_MIN);
  }
}

}  // namespace
}  // namespace stook::decode
