#include "workers/decode/resample.h"

#include <algorithm>
#include <cmath>

namespace stook::decode {
namespace {

// 255 << 22 is the largest sum of a byte's parts that fits into 31 bits.
constexpr int kMostBitsDown = 22;

constexpr Range kBytes = {0, UINT8_MAX};

/// Bits of the second pass: sums of samples that come out of the first must fit into 31 bits.
int most_bits_across(const Taps& down, const Taps& across) {
  const Range range = range_of(across, range_of(down, kBytes));
  const double largest = std::max(range.high, -range.low) + 2;
  int bits = 16;
  while (std::ldexp(largest, bits + kFractionBits) > INT32_MAX) --bits;
  return bits;
}

void mirror(Taps& taps) {
  std::reverse(taps.spans.begin(), taps.spans.end());
  const std::size_t count = taps.spans.size();
  for (std::size_t i = 0; i < count / 2; ++i) {
    double* const one = taps.weights.data() + i * taps.most;
    std::swap_ranges(one, one + taps.most, taps.weights.data() + (count - 1 - i) * taps.most);
  }
}

void blend_columns_wide(const std::int16_t* in, const Taps& taps, unsigned channels,
                        std::uint8_t* out) {
  constexpr double kUnit = 1 << kFractionBits;
  for (std::size_t i = 0; i < taps.spans.size(); ++i) {
    const Span span = taps.spans[i];
    for (unsigned c = 0; c < channels; ++c) {
      const std::int16_t* const from = in + std::size_t{span.first} * channels + c;
      double sum = 0.5;
      for (std::size_t k = 0; k < span.count; ++k)
        sum += taps.of(i)[k] * (from[k * channels] / kUnit);
      *out++ = static_cast<std::uint8_t>(std::clamp(std::floor(sum), 0.0, 255.0));
    }
  }
}

}  // namespace

Resampler::Resampler(const ResampleShape& shape, const Kernels& kernels)
    : shape_(shape), kernels_(kernels) {
  down_ = make_taps(shape.filter, shape.top, shape.bottom, shape.height, shape.out_height);
  across_ = make_taps(shape.filter, shape.left, shape.right, shape.width, shape.out_width);
  if (shape.flip) mirror(across_);
  few_down_ = down_.most <= kMostTaps;
  few_across_ = across_.most <= kMostTaps;
  if (few_down_) fixed_down_ = quantized(down_, kMostBitsDown, 1);
  if (few_across_)
    fixed_across_ = quantized(across_, most_bits_across(down_, across_), Kernels::kPad);

  samples_ = std::size_t{shape.width} * shape.channels;
  plan_rows();
  slot_bytes_ =
      (std::max(shape.row_bytes, shape.skip + samples_) + 2 * kSlack - 1) / kSlack * kSlack;
  rows_.resize(slot_bytes_ * ring_);
  slots_.resize(kRowsAtATime);
  inputs_.resize(few_down_ ? down_.most : 0);
  sums_.resize(few_down_ ? 0 : samples_ * open_);
  blended_.resize(samples_ + std::size_t{Kernels::kPad} * shape.channels + kSlack);
  result_.resize(std::size_t{shape.out_width} * shape.channels + kSlack);
}

void Resampler::plan_rows() {
  oldest_.resize(shape_.out_height);
  std::uint32_t oldest = shape_.height;
  for (std::size_t i = shape_.out_height; i-- > 0;) {
    oldest = std::min(oldest, down_.spans[i].first);
    oldest_[i] = oldest;
  }
  std::uint32_t newest = 0;
  std::uint32_t most = 0;
  std::uint32_t begun = 0;  // never less for a later result than for this one
  for (std::uint32_t i = 0; i < shape_.out_height; ++i) {
    newest = std::max(newest, down_.spans[i].first + down_.spans[i].count);
    most = std::max(most, newest - oldest_[i]);
    // Results whose spans have begun when this one's ends, and that have not come out before.
    while (begun < shape_.out_height && oldest_[begun] < newest) ++begun;
    open_ = std::max(open_, begun - i);
  }
  ring_ = std::min(few_down_ ? most + kRowsAtATime : kRowsAtATime, shape_.height);
}

unsigned Resampler::wanted() const {
  if (done()) return 0;
  const std::uint32_t kept = few_down_ ? std::min(oldest_[made_], taken_) : summed_;
  const std::uint32_t room = ring_ - (taken_ - kept);
  return std::min({room, kRowsAtATime, shape_.height - taken_});
}

std::uint8_t* const* Resampler::slots() {
  const unsigned count = wanted();
  for (unsigned i = 0; i < count; ++i)
    slots_[i] = rows_.data() + slot_bytes_ * ((taken_ + i) % ring_);
  return slots_.data();
}

void Resampler::added(unsigned count) { taken_ += count; }

void Resampler::add_to_sums() {
  const std::uint8_t* const row = rows_.data() + slot_bytes_ * (summed_ % ring_) + shape_.skip;
  for (std::uint32_t i = made_; i < shape_.out_height && oldest_[i] <= summed_; ++i) {
    const Span span = down_.spans[i];
    if (summed_ < span.first || summed_ - span.first >= span.count) continue;
    const double weight = down_.of(i)[summed_ - span.first];
    double* const sums = sums_.data() + samples_ * (i % open_);
    for (std::size_t k = 0; k < samples_; ++k) sums[k] += weight * row[k];
  }
  ++summed_;
}

void Resampler::blend_sums(std::uint32_t row) {
  double* const sums = sums_.data() + samples_ * (row % open_);
  for (std::size_t k = 0; k < samples_; ++k) {
    const double value = std::floor(sums[k] * (1 << kFractionBits) + 0.5);
    blended_[k] = static_cast<std::int16_t>(std::clamp<double>(value, INT16_MIN, INT16_MAX));
    sums[k] = 0;
  }
}

const std::uint8_t* Resampler::next_row() {
  if (done()) return nullptr;
  const Span span = down_.spans[made_];
  const std::uint32_t end = span.first + span.count;
  if (few_down_) {
    if (taken_ < end) return nullptr;
    for (std::uint32_t k = 0; k < span.count; ++k)
      inputs_[k] = rows_.data() + slot_bytes_ * ((span.first + k) % ring_) + shape_.skip;
    kernels_.blend_rows(inputs_.data(), fixed_down_.of(made_), span.count, fixed_down_.bits,
                        samples_, blended_.data());
  } else {
    while (summed_ < std::min(taken_, end)) add_to_sums();
    if (summed_ < end) return nullptr;
    blend_sums(made_);
  }
  if (few_across_) {
    const auto blend = shape_.channels == 1 ? kernels_.blend_columns_1 : kernels_.blend_columns_4;
    blend(blended_.data(), fixed_across_, result_.data());
  } else {
    blend_columns_wide(blended_.data(), across_, shape_.channels, result_.data());
  }
  ++made_;
  return result_.data();
}

}  // namespace stook::decode
