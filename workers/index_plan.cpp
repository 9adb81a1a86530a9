#include "workers/index_plan.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

namespace stook::workers {
namespace {

// The splitmix64 step of Sebastiano Vigna (https://prng.di.unimi.it/splitmix64.c, public domain).
constexpr std::uint64_t mix(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

std::uint64_t count_jobs(const IndexPlan::Options& options) {
  if (options.length > IndexPlan::kMaxLength) {
    throw std::invalid_argument("a source of " + std::to_string(options.length) +
                                " elements is longer than the 2**62 that can be planned");
  }
  if (options.batch_size == 0) return options.length;
  const bool short_batch = options.length % options.batch_size != 0 && !options.drop_remainder;
  return options.length / options.batch_size + (short_batch ? 1 : 0);
}

}  // namespace

IndexPermutation::IndexPermutation(std::uint64_t length, std::uint64_t seed, std::uint64_t epoch)
    : length_(length) {
  const unsigned bits = length < 2 ? 0 : static_cast<unsigned>(std::bit_width(length - 1));
  low_bits_ = bits / 2;
  low_mask_ = (std::uint64_t{1} << low_bits_) - 1;
  high_mask_ = (std::uint64_t{1} << (bits - low_bits_)) - 1;
  rounds_ = bits <= kSmallBits ? kRoundsWhenSmall : kRounds;
  std::uint64_t key = mix(mix(seed) ^ epoch);
  for (std::uint64_t& round_key : keys_) round_key = key = mix(key);
}

std::uint64_t IndexPermutation::operator()(std::uint64_t place) const {
  // With fewer than two elements there is nothing to choose (and both halves have no bits).
  if (length_ < 2) return place;
  do {
    std::uint64_t low = place & low_mask_;
    std::uint64_t high = place >> low_bits_;
    for (unsigned round = 0; round < rounds_; round += 2) {
      high ^= mix(keys_[round] ^ low) & high_mask_;
      low ^= mix(keys_[round + 1] ^ high) & low_mask_;
    }
    place = (high << low_bits_) | low;
  } while (place >= length_);
  return place;
}

IndexPlan::IndexPlan(const Options& options)
    : options_(options), jobs_per_epoch_(count_jobs(options)) {}

bool IndexPlan::next(Job& job) {
  if (jobs_per_epoch_ == 0) return false;
  if (position_ == jobs_per_epoch_) {
    position_ = 0;
    ++epochs_done_;
    permutation_.reset();
  }
  if (options_.num_epochs.has_value() && epochs_done_ >= *options_.num_epochs) {
    // Stays so: the position is 0 and no epoch is added.
    return false;
  }
  const std::uint64_t epoch = options_.first_epoch + epochs_done_;
  if (options_.shuffle_seed.has_value() && !permutation_.has_value()) {
    permutation_.emplace(options_.length, *options_.shuffle_seed, epoch);
  }
  const std::uint64_t batch = std::max<std::uint64_t>(options_.batch_size, 1);
  const std::uint64_t begin = position_ * batch;
  const std::uint64_t count = std::min(batch, options_.length - begin);
  indices_.resize(count);
  for (std::uint64_t item = 0; item < count; ++item) {
    indices_[item] = permutation_.has_value() ? (*permutation_)(begin + item) : begin + item;
  }
  job = {epoch, position_, indices_};
  ++position_;
  return true;
}

}  // namespace stook::workers
