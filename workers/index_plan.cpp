#include "workers/index_plan.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

namespace stook::workers {
namespace {

// The splitmix64 step of Sebastiano Vigna (https://prng.di.unimi.it/splitmix64.c, public domain).
constexpr std::uint64_t mix(std::uint64_t value) {
  value += 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

std::string text(std::uint64_t value) { return std::to_string(value); }

void check(const IndexPlan::Options& options) {
  if (options.length > IndexPlan::kMaxLength) {
    throw std::invalid_argument("a source of " + text(options.length) +
                                " elements is longer than the 2**62 that can be planned");
  }
  if (options.shard_count == 0 || options.shard_count > IndexPlan::kMaxLength ||
      options.shard_index >= options.shard_count) {
    throw std::invalid_argument("shard " + text(options.shard_index) + " of " +
                                text(options.shard_count) +
                                ": the index must be below the count, and that 1 to 2**62");
  }
  if (options.first_place > options.length) {
    throw std::invalid_argument("first_place " + text(options.first_place) +
                                " is beyond the source's " + text(options.length) + " elements");
  }
  const auto& skip = options.skip;
  if (std::adjacent_find(skip.begin(), skip.end(), std::greater_equal<>()) != skip.end()) {
    throw std::invalid_argument("skip must be in rising order, without repetition");
  }
  if (options.fill && (options.batch_size == 0 || !skip.empty())) {
    throw std::invalid_argument("fill needs a batch_size, and does not go with skip");
  }
  if (!options.fill && options.first_item.has_value()) {
    throw std::invalid_argument("first_item needs fill");
  }
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

std::optional<std::uint64_t> ItemsFrom::at(std::uint64_t number) const {
  if (place >= length || number > (length - 1 - place) / step) return std::nullopt;
  const std::uint64_t at = place + number * step;
  return shuffled != 0 ? IndexPermutation(length, seed, epoch)(at) : at;
}

IndexPlan::IndexPlan(Options options)
    : options_(std::move(options)),
      batch_(std::max<std::uint64_t>(options_.batch_size, 1)),
      position_(options_.first_position) {
  check(options_);
  jobs_per_epoch_ = jobs_of(items_in(options_.first_epoch + 1));
  items_ = items_in(options_.first_epoch);
  if (options_.first_item.has_value()) {
    item_ = *options_.first_item;
    if (item_ > items_) {
      throw std::invalid_argument("first_item " + text(item_) + " is beyond the " + text(items_) +
                                  " of the epoch");
    }
    first_item_ = item_;
    return;
  }
  const std::uint64_t jobs = jobs_of(items_);
  if (position_ > jobs) {
    throw std::invalid_argument("first_position " + text(position_) + " is beyond the epoch's " +
                                text(jobs) + " elements");
  }
  // Not the product alone: the last job may have fewer items, and a batch be of any size.
  item_ = position_ == jobs ? items_ : position_ * batch_;
  first_item_ = item_;
}

std::uint64_t IndexPlan::items_in(std::uint64_t epoch) const {
  // Below 2**63: none of the three is above 2**62.
  const std::uint64_t first = first_place_of(epoch) + options_.shard_index;
  if (first >= options_.length) return 0;
  return (options_.length - first - 1) / options_.shard_count + 1;
}

std::uint64_t IndexPlan::jobs_of(std::uint64_t items) const {
  const bool short_batch = items % batch_ != 0 && !options_.drop_remainder;
  return items / batch_ + (short_batch ? 1 : 0);
}

std::uint64_t IndexPlan::jobs_in_first_epoch() const {
  return jobs_of(items_in(options_.first_epoch));
}

std::uint64_t IndexPlan::planned_items(std::uint64_t epoch, std::uint64_t item) const {
  const std::uint64_t items = items_in(epoch);
  return std::min(batch_, items - std::min(item, items));
}

bool IndexPlan::epoch_is_over() const {
  const std::uint64_t left = items_ - item_;
  return left == 0 || (left < batch_ && options_.drop_remainder);
}

bool IndexPlan::next(Job& job) {
  if (jobs_per_epoch_ == 0) return false;
  for (;;) {
    if (epoch_is_over()) {
      position_ = 0;
      item_ = 0;
      ++epochs_done_;
      items_ = items_in(options_.first_epoch + epochs_done_);
      permutation_.reset();
    }
    if (options_.num_epochs.has_value() && epochs_done_ >= *options_.num_epochs) {
      // Stays so: the next epoch is not begun, and has jobs.
      return false;
    }
    const std::uint64_t item = item_;
    const std::uint64_t count = std::min(batch_, items_ - item);
    if (count > kMaxJobItems) {
      throw std::invalid_argument("a batch of " + text(count) +
                                  " items is more than the 2**32 that one can have");
    }
    indices_.resize(count);  // it may throw, and this job has moved nothing yet
    job.epoch = options_.first_epoch + epochs_done_;
    job.position = position_++;
    job.number = first_place_of(job.epoch) / batch_ + options_.shard_index +
                 job.position * options_.shard_count;
    job.ordinal = ordinal_++;
    item_ += count;
    if (skipped_ < options_.skip.size() && options_.skip[skipped_] == job.ordinal) {
      ++skipped_;
      continue;
    }
    if (options_.shuffle_seed.has_value() && !permutation_.has_value()) {
      permutation_.emplace(options_.length, *options_.shuffle_seed, job.epoch);
    }
    job.place = first_place_of(job.epoch) + options_.shard_index + item * options_.shard_count;
    std::uint64_t place = job.place;
    for (std::uint64_t& index : indices_) {
      index = permutation_.has_value() ? (*permutation_)(place) : place;
      place += options_.shard_count;
    }
    job.indices = indices_;
    return true;
  }
}

void IndexPlan::rewind(std::uint64_t epoch, std::uint64_t position, std::uint64_t item,
                       std::uint64_t ordinal) {
  if (!options_.fill) throw std::invalid_argument("only a plan with fill can be rewound");
  if (epoch < options_.first_epoch) {
    throw std::invalid_argument("a plan from epoch " + text(options_.first_epoch) +
                                " on cannot be rewound to epoch " + text(epoch));
  }
  epochs_done_ = epoch - options_.first_epoch;
  position_ = position;
  items_ = items_in(epoch);
  item_ = std::min(item, items_);
  ordinal_ = ordinal;
  permutation_.reset();
}

}  // namespace stook::workers
