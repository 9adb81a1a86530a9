#include "workers/decode/resample.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <random>
#include <string>
#include <vector>

#include "workers/decode/filter.h"
#include "workers/decode/kernels.h"

namespace stook::decode {
namespace {

using Pixels = std::vector<std::uint8_t>;

constexpr Filter kFilters[] = {Filter::kBox, Filter::kBilinear, Filter::kHamming, Filter::kBicubic,
                               Filter::kLanczos};

// ---- the reference: the filters once more, in double precision throughout, one pixel at a time

struct ReferenceFilter {
  double reach;
  double (*at)(double x);
};

double reference_sinc(double x) {
  return x == 0 ? 1 : std::sin(x * std::numbers::pi) / (x * std::numbers::pi);
}

ReferenceFilter reference(Filter filter) {
  switch (filter) {
    case Filter::kBox:
      return {0.5, [](double x) { return x > -0.5 && x <= 0.5 ? 1.0 : 0.0; }};
    case Filter::kHamming:
      return {1, [](double x) {
                return std::abs(x) < 1
                           ? reference_sinc(x) * (0.54 + 0.46 * std::cos(x * std::numbers::pi))
                           : 0.0;
              }};
    case Filter::kBicubic:
      return {2, [](double x) {
                x = std::abs(x);
                if (x < 1) return 1.5 * x * x * x - 2.5 * x * x + 1;
                return x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2 : 0.0;
              }};
    case Filter::kLanczos:
      return {3, [](double x) {
                return std::abs(x) < 3 ? reference_sinc(x) * reference_sinc(x / 3) : 0.0;
              }};
    default:
      return {1, [](double x) { return std::max(0.0, 1 - std::abs(x)); }};
  }
}

/// Weights of all inputs for one output.
std::vector<double> reference_weights(Filter filter, double begin, double end, std::uint32_t inputs,
                                      std::uint32_t outputs, std::uint32_t i) {
  const ReferenceFilter f = reference(filter);
  const double step = (end - begin) / outputs;
  const double center = begin + (i + 0.5) * step;
  const double wider = std::max(1.0, step);
  std::vector<double> weights(inputs);
  double sum = 0;
  for (std::uint32_t k = 0; k < inputs; ++k) {
    if (k + 1 <= std::floor(center - f.reach * wider + 0.5)) continue;
    weights[k] = f.at((k - center + 0.5) * (1 / wider));
    sum += weights[k];
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// What the result would be without any rounding.
std::vector<double> exact(const ResampleShape& s, const Pixels& source) {
  const std::size_t c = s.channels;
  std::vector<double> between(std::size_t{s.out_height} * s.width * c);
  for (std::uint32_t y = 0; y < s.out_height; ++y) {
    const auto weights = reference_weights(s.filter, s.top, s.bottom, s.height, s.out_height, y);
    for (std::uint32_t k = 0; k < s.height; ++k) {
      if (weights[k] == 0) continue;
      for (std::size_t i = 0; i < s.width * c; ++i)
        between[y * s.width * c + i] += weights[k] * source[k * s.width * c + i];
    }
  }
  std::vector<double> result(std::size_t{s.out_height} * s.out_width * c);
  for (std::uint32_t x = 0; x < s.out_width; ++x) {
    const auto weights = reference_weights(s.filter, s.left, s.right, s.width, s.out_width,
                                           s.flip ? s.out_width - 1 - x : x);
    for (std::uint32_t k = 0; k < s.width; ++k) {
      if (weights[k] == 0) continue;
      for (std::uint32_t y = 0; y < s.out_height; ++y) {
        for (std::size_t i = 0; i < c; ++i)
          result[(std::size_t{y} * s.out_width + x) * c + i] +=
              weights[k] * between[(std::size_t{y} * s.width + k) * c + i];
      }
    }
  }
  for (double& value : result) value = std::clamp(value, 0.0, 255.0);
  return result;
}

// ---- the thing itself

/// Hands rows in as the resampler asks for them, behind `skip` bytes of rubbish.
Pixels resampled(ResampleShape shape, const Pixels& source, const Kernels& kernels) {
  const std::size_t row = std::size_t{shape.width} * shape.channels;
  shape.row_bytes = shape.skip + row + 5;
  Resampler resampler(shape, kernels);
  Pixels result;
  std::size_t next = 0;
  while (!resampler.done()) {
    if (const std::uint8_t* const out = resampler.next_row()) {
      result.insert(result.end(), out, out + std::size_t{shape.out_width} * shape.channels);
      continue;
    }
    const unsigned count = resampler.wanted();
    if (count == 0 || next + count > shape.height) {
      ADD_FAILURE() << "asks for " << count << " rows behind row " << next << " of "
                    << shape.height;
      return {};
    }
    std::uint8_t* const* const slots = resampler.slots();
    for (unsigned i = 0; i < count; ++i, ++next) {
      std::fill_n(slots[i], shape.row_bytes, std::uint8_t{0xA5});
      std::copy_n(source.data() + next * row, row, slots[i] + shape.skip);
    }
    resampler.added(count);
  }
  EXPECT_EQ(resampler.next_row(), nullptr);
  EXPECT_EQ(resampler.wanted(), 0U);
  return result;
}

/// Noise with even patches and hard edges: what makes filters overshoot.
Pixels picture(std::uint32_t width, std::uint32_t height, unsigned channels, unsigned seed) {
  std::mt19937 random(seed);
  Pixels pixels(std::size_t{width} * height * channels);
  for (std::size_t i = 0; i < pixels.size(); ++i) {
    const std::size_t pixel = i / channels;
    const bool patch = (pixel % width / 5 + pixel / width / 3) % 2 == 0;
    pixels[i] = static_cast<std::uint8_t>(patch ? (pixel / 7 % 2 == 0 ? 0 : 255) : random());
  }
  return pixels;
}

ResampleShape shape_of(std::uint32_t width, std::uint32_t height, std::uint32_t out_width,
                       std::uint32_t out_height) {
  ResampleShape shape;
  shape.width = width;
  shape.height = height;
  shape.right = width;
  shape.bottom = height;
  shape.out_width = out_width;
  shape.out_height = out_height;
  return shape;
}

std::string name_of(const ResampleShape& s) {
  return std::to_string(s.width) + "x" + std::to_string(s.height) + " (" + std::to_string(s.left) +
         ", " + std::to_string(s.top) + ", " + std::to_string(s.right) + ", " +
         std::to_string(s.bottom) + ") to " + std::to_string(s.out_width) + "x" +
         std::to_string(s.out_height) + ", " + std::to_string(s.channels) + " channels, filter " +
         std::to_string(static_cast<int>(s.filter)) + (s.flip ? ", flipped" : "");
}

/// Every version of the kernels gives the same, and that is within 1 of the exact result: rounding
/// at the end takes half of it.
void expect_right(const ResampleShape& shape, const Pixels& source) {
  SCOPED_TRACE(name_of(shape));
  const Pixels portable = resampled(shape, source, portable_kernels());
  const std::vector<double> expected = exact(shape, source);
  ASSERT_EQ(portable.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (shape.channels == 4 && i % 4 == 3) continue;
    ASSERT_NEAR(portable[i], expected[i], 0.75) << "at " << i;
  }
  const Kernels* const avx2 = avx2_kernels();
  if (avx2 != nullptr) {
    ASSERT_EQ(resampled(shape, source, *avx2), portable);
  }
}

TEST(Resample, AVX2IsTestedHere) {
  if (avx2_kernels() == nullptr) GTEST_SKIP() << "this processor has no AVX2 and F16C";
  EXPECT_NE(avx2_kernels()->blend_rows, portable_kernels().blend_rows);
}

TEST(Resample, MatchesTheReferenceForAllSmallSizes) {
  for (const Filter filter : kFilters) {
    for (const unsigned channels : {1U, 4U}) {
      for (const std::uint32_t in : {1U, 2U, 3U, 5U, 8U, 17U, 33U}) {
        for (const std::uint32_t out : {1U, 2U, 3U, 7U, 16U, 31U, 40U}) {
          ResampleShape shape = shape_of(in, 34 - in, out, 41 - out);
          shape.filter = filter;
          shape.channels = channels;
          shape.flip = (in + out) % 2 == 0;
          shape.skip = in % 4 * channels;
          ASSERT_NO_FATAL_FAILURE(expect_right(shape, picture(in, 34 - in, channels, in + out)));
        }
      }
    }
  }
}

TEST(Resample, MatchesTheReferenceForRandomBoxes) {
  std::mt19937 random(11);
  const auto real = [&random](double low, double high) {
    return std::uniform_real_distribution<double>(low, high)(random);
  };
  for (int i = 0; i < 300; ++i) {
    const auto width = static_cast<std::uint32_t>(real(1, 120));
    const auto height = static_cast<std::uint32_t>(real(1, 120));
    ResampleShape shape = shape_of(width, height, static_cast<std::uint32_t>(real(1, 100)),
                                   static_cast<std::uint32_t>(real(1, 100)));
    // Within the first and the last pixel, as boxes with fractions lie in their windows.
    shape.left = i % 3 == 0 ? 0 : real(0, 0.49);
    shape.top = i % 4 == 0 ? 0 : real(0, 0.49);
    shape.right = width - (i % 5 == 0 ? 0 : real(0, 0.49));
    shape.bottom = height - (i % 2 == 0 ? 0 : real(0, 0.49));
    shape.filter = kFilters[i % 5];
    shape.channels = i % 2 == 0 ? 4 : 1;
    shape.flip = i % 7 < 3;
    const Pixels source = picture(width, height, shape.channels, static_cast<unsigned>(i));
    ASSERT_NO_FATAL_FAILURE(expect_right(shape, source));
  }
}

TEST(Resample, MatchesTheReferenceFarDown) {
  // Beyond the spans that integers serve, in one direction, in the other, in both.
  for (const Filter filter : kFilters) {
    for (const auto& [width, height] : {std::pair{2000U, 3U}, {3U, 2000U}, {700U, 650U}}) {
      for (const std::uint32_t out : {1U, 2U, 9U}) {
        ResampleShape shape = shape_of(width, height, out, out);
        shape.filter = filter;
        shape.flip = out == 2;
        ASSERT_NO_FATAL_FAILURE(expect_right(shape, picture(width, height, 4, out)));
      }
    }
  }
}

TEST(Resample, MatchesTheReferenceFarUp) {
  for (const Filter filter : kFilters) {
    ResampleShape shape = shape_of(2, 2, 1500, 300);
    shape.filter = filter;
    ASSERT_NO_FATAL_FAILURE(expect_right(shape, picture(2, 2, 4, 1)));
    shape.left = 0.4;
    shape.right = 0.4 + 1e-9;
    ASSERT_NO_FATAL_FAILURE(expect_right(shape, picture(2, 2, 4, 1)));
  }
}

TEST(Resample, TheSameSizeIsTheSameImage) {
  for (const Filter filter : kFilters) {
    ResampleShape shape = shape_of(37, 23, 37, 23);
    shape.filter = filter;
    const Pixels source = picture(37, 23, 4, 3);
    EXPECT_EQ(resampled(shape, source, portable_kernels()), source);
    EXPECT_EQ(resampled(shape, source, best_kernels()), source);
  }
}

TEST(Resample, AnEvenSurfaceStaysWhatItIs) {
  for (const Filter filter : kFilters) {
    for (const int gray : {0, 1, 127, 254, 255}) {
      const auto value = static_cast<std::uint8_t>(gray);
      for (const std::uint32_t out : {1U, 13U, 64U, 301U}) {
        ResampleShape shape = shape_of(100, 90, out, out);
        shape.filter = filter;
        const Pixels result = resampled(shape, Pixels(100 * 90 * 4, value), best_kernels());
        ASSERT_EQ(result, Pixels(result.size(), value)) << name_of(shape);
      }
    }
  }
}

TEST(Resample, KeepsOnlyTheRowsItNeeds) {
  // 64 rows to 8: a result reaches over at most 17 of them, and 16 are asked for at a time.
  ResampleShape shape = shape_of(4, 64000, 4, 8000);
  shape.row_bytes = 16;
  Resampler resampler(shape, best_kernels());
  std::vector<std::uint8_t*> places;
  std::uint32_t rows = 0;
  while (!resampler.done()) {
    if (resampler.next_row() != nullptr) continue;
    const unsigned count = resampler.wanted();
    ASSERT_GT(count, 0U);
    for (unsigned i = 0; i < count; ++i) places.push_back(resampler.slots()[i]);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    rows += count;
    resampler.added(count);
  }
  EXPECT_LE(rows, 64000U);
  EXPECT_LE(places.size(), 33U);
}

TEST(Resample, FarDownItKeepsSumsInsteadOfRows) {
  ResampleShape shape = shape_of(4, 64000, 4, 8);
  shape.row_bytes = 16;
  Resampler resampler(shape, best_kernels());
  std::vector<std::uint8_t*> places;
  while (!resampler.done()) {
    if (resampler.next_row() != nullptr) continue;
    const unsigned count = resampler.wanted();
    ASSERT_GT(count, 0U);
    for (unsigned i = 0; i < count; ++i) places.push_back(resampler.slots()[i]);
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    resampler.added(count);
  }
  EXPECT_LE(places.size(), 16U);
}

TEST(FixedTaps, AddUpToOneExactly) {
  for (const Filter filter : kFilters) {
    for (const std::uint32_t out : {1U, 7U, 50U, 333U}) {
      const Taps taps = make_taps(filter, 0.25, 49.5, 50, out);
      const FixedTaps fixed = quantized(taps, 16, 8);
      ASSERT_EQ(fixed.stride % 8, 0U);
      for (std::size_t i = 0; i < out; ++i) {
        std::int64_t sum = 0;
        double real = 0;
        for (std::uint32_t k = 0; k < fixed.stride; ++k) {
          sum += fixed.of(i)[k];
          if (k >= taps.spans[i].count) {
            ASSERT_EQ(fixed.of(i)[k], 0);
            continue;
          }
          real += taps.of(i)[k];
          ASSERT_NEAR(std::ldexp(fixed.of(i)[k], -fixed.bits), taps.of(i)[k],
                      std::ldexp(1.0, -fixed.bits));
        }
        ASSERT_EQ(sum, std::int64_t{1} << fixed.bits);
        ASSERT_NEAR(real, 1, 1e-12);
      }
    }
  }
}

}  // namespace
}  // namespace stook::decode
