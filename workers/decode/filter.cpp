#include "workers/decode/filter.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace stook::decode {
namespace {

double sinc(double x) {
  if (x == 0) return 1;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

double box(double x) { return x > -0.5 && x <= 0.5 ? 1 : 0; }

double triangle(double x) { return std::max(0.0, 1 - std::abs(x)); }

double hamming(double x) {
  if (std::abs(x) >= 1) return 0;
  return sinc(x) * (0.54 + 0.46 * std::cos(std::numbers::pi * x));
}

double cubic(double x) {
  constexpr double kA = -0.5;
  x = std::abs(x);
  if (x < 1) return ((kA + 2) * x - (kA + 3)) * x * x + 1;
  if (x < 2) return ((x - 5) * x + 8) * x * kA - 4 * kA;
  return 0;
}

double lanczos(double x) { return std::abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0; }

struct Kernel {
  double (*weight)(double distance);
  double support;
};

Kernel kernel_of(Filter filter) {
  switch (filter) {
    case Filter::kBox:
      return {box, 0.5};
    case Filter::kHamming:
      return {hamming, 1};
    case Filter::kBicubic:
      return {cubic, 2};
    case Filter::kLanczos:
      return {lanczos, 3};
    default:
      return {triangle, 1};
  }
}

}  // namespace

Taps make_taps(Filter filter, double begin, double end, std::uint32_t inputs,
               std::uint32_t outputs) {
  const Kernel kernel = kernel_of(filter);
  const double step = (end - begin) / outputs;
  const double width = std::max(step, 1.0);
  const double support = kernel.support * width;
  const double per_sample =
      1 / width;  // and times it below: ties of the box filter fall as Pillow's
  // Twice the support holds at most so many centres of samples, both ends included.
  const auto room = static_cast<std::uint32_t>(std::min<double>(2 * support + 2, inputs));
  const double last_input = inputs;

  Taps taps;
  taps.spans.resize(outputs);
  taps.weights.assign(std::size_t{outputs} * room, 0.0);
  for (std::uint32_t i = 0; i < outputs; ++i) {
    const double center = begin + (i + 0.5) * step;
    // A centre on the lower edge is out, on the upper edge in: with 1 / width above, this is what
    // decides to which of two box filters a sample belongs that lies between them, as in Pillow.
    const double from = std::clamp(std::floor(center - support + 0.5), 0.0, last_input - 1);
    const double to = std::clamp(std::floor(center + support + 0.5), from + 1, last_input);
    auto first = static_cast<std::uint32_t>(from);
    auto count = std::min(static_cast<std::uint32_t>(to - from), room);
    double* const weights = taps.weights.data() + std::size_t{i} * room;
    double sum = 0;
    for (std::uint32_t k = 0; k < count; ++k) {
      weights[k] = kernel.weight((first + k - center + 0.5) * per_sample);
      sum += weights[k];
    }
    // Zeros at the ends cost time and change nothing.
    std::uint32_t zeros = 0;
    while (zeros + 1 < count && weights[zeros] == 0) ++zeros;
    while (count - 1 > zeros && weights[count - 1] == 0) --count;
    if (zeros > 0) std::rotate(weights, weights + zeros, weights + room);
    first += zeros;
    count -= zeros;
    if (sum > 0) {
      for (std::uint32_t k = 0; k < count; ++k) weights[k] /= sum;
    } else {  // A centre on the edge of a box filter, lost to rounding: the sample it lies in.
      first = static_cast<std::uint32_t>(std::clamp(std::floor(center), 0.0, last_input - 1));
      std::fill_n(weights, room, 0.0);
      count = 1;
      weights[0] = 1;
    }
    taps.spans[i] = {first, count};
    taps.most = std::max(taps.most, count);
  }
  // Closer together, now that the longest is known. Rows move to the front only.
  for (std::size_t i = 1; i < outputs && taps.most < room; ++i) {
    std::copy_n(taps.weights.data() + i * room, taps.most, taps.weights.data() + i * taps.most);
  }
  taps.weights.resize(std::size_t{outputs} * taps.most);
  return taps;
}

Range range_of(const Taps& taps, Range samples) {
  Range range;
  for (std::size_t i = 0; i < taps.spans.size(); ++i) {
    double low = 0;
    double high = 0;
    for (std::uint32_t k = 0; k < taps.spans[i].count; ++k) {
      const double weight = taps.of(i)[k];
      low += weight * (weight < 0 ? samples.high : samples.low);
      high += weight * (weight < 0 ? samples.low : samples.high);
    }
    range.low = std::min(range.low, low);
    range.high = std::max(range.high, high);
  }
  return range;
}

FixedTaps quantized(const Taps& taps, int most_bits, std::uint32_t pad) {
  double largest = 0;
  for (const double weight : taps.weights) largest = std::max(largest, std::abs(weight));
  FixedTaps fixed;
  fixed.bits = most_bits;
  // An integer may come out 1 larger than its weight, from rounding the sums.
  while (std::ldexp(largest, fixed.bits) + 1 > INT16_MAX) --fixed.bits;
  fixed.spans = taps.spans;
  fixed.most = taps.most;
  fixed.stride = (taps.most + pad - 1) / pad * pad;
  fixed.weights.assign(taps.spans.size() * fixed.stride, 0);
  const double unit = std::ldexp(1.0, fixed.bits);
  for (std::size_t i = 0; i < taps.spans.size(); ++i) {
    // The running sum is rounded, not each weight, so that the errors of neighbours cancel.
    double sum = 0;
    double before = 0;
    std::int16_t* const weights = fixed.weights.data() + i * fixed.stride;
    const std::uint32_t count = taps.spans[i].count;
    for (std::uint32_t k = 0; k < count; ++k) {
      sum += taps.of(i)[k];
      const double rounded = std::floor((k + 1 == count ? 1.0 : sum) * unit + 0.5);
      weights[k] = static_cast<std::int16_t>(rounded - before);
      before = rounded;
    }
  }
  return fixed;
}

}  // namespace stook::decode
