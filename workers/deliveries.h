// Which jobs of a pass were delivered: what a state needs to go on with exactly the others.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace stook::workers {

// Counts jobs by their ordinals within a pass (see index_plan.h). Belongs to one thread at a time;
// never blocks. Its memory is a bit for each ordinal from the lowest missing one to the highest
// delivered one, rounded up: these are fewer than a window, and those that are skipped between
// them.
class Deliveries {
 public:
  // `skip`: ordinals, in rising order, that are not dealt and count as delivered. May throw
  // std::bad_alloc.
  explicit Deliveries(std::vector<std::uint64_t> skip = {}) : skip_(std::move(skip)), words_(1) {
    absorb();
  }

  // The job that was dealt as the `dealt`-th, counted from 0. Once for each. May throw
  // std::bad_alloc, and has then changed nothing; not for the lowest one that is missing.
  void add(std::uint64_t dealt) {
    const std::uint64_t ordinal = ordinal_of(dealt);
    if (ordinal != lowest_) {
      if (ordinal - lowest_ >= 64 * words_.size()) grow(ordinal - lowest_);
      word_of(ordinal) |= bit_of(ordinal);
      ++count_ahead_;
      return;
    }
    ++lowest_;
    absorb();
  }

  // Every job with a smaller ordinal was delivered, and this one was not.
  std::uint64_t lowest() const { return lowest_; }
  // Those above it that were, too, in rising order.
  std::vector<std::uint64_t> ahead() const {
    std::vector<std::uint64_t> ordinals;
    ordinals.reserve(count_ahead_ + skip_.size() - passed_);
    auto skipped = skip_.begin() + static_cast<std::ptrdiff_t>(passed_);
    std::uint64_t left = count_ahead_;
    for (std::uint64_t ordinal = lowest_; left != 0; ++ordinal) {
      if (skipped != skip_.end() && *skipped == ordinal) {
        ordinals.push_back(*skipped++);
      } else if ((word_of(ordinal) & bit_of(ordinal)) != 0) {
        ordinals.push_back(ordinal);
        --left;
      }
    }
    ordinals.insert(ordinals.end(), skipped, skip_.end());
    return ordinals;
  }

 private:
  static std::uint64_t bit_of(std::uint64_t ordinal) { return std::uint64_t{1} << (ordinal % 64); }
  std::uint64_t& word_of(std::uint64_t ordinal) {
    return words_[ordinal / 64 & (words_.size() - 1)];
  }
  const std::uint64_t& word_of(std::uint64_t ordinal) const {
    return words_[ordinal / 64 & (words_.size() - 1)];
  }

  std::uint64_t ordinal_of(std::uint64_t dealt) const {
    // Below skip_[i] lie skip_[i] - i ordinals that are dealt. Those skipped before the job are
    // the ones for which that is not above `dealt`: rising with i, like skip_ itself.
    std::size_t low = 0;
    std::size_t high = skip_.size();
    while (low < high) {
      const std::size_t middle = low + (high - low) / 2;
      if (skip_[middle] - middle <= dealt) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return dealt + low;
  }

  // Makes room for the ordinal that is `distance` above the lowest one.
  void grow(std::uint64_t distance) {
    std::vector<std::uint64_t> words(std::bit_ceil(distance / 64 + 2));
    words.swap(words_);
    std::uint64_t left = count_ahead_;
    for (std::uint64_t ordinal = lowest_; left != 0; ++ordinal) {
      if ((words[ordinal / 64 & (words.size() - 1)] & bit_of(ordinal)) == 0) continue;
      word_of(ordinal) |= bit_of(ordinal);
      --left;
    }
  }

  void absorb() {
    for (;; ++lowest_) {
      if (passed_ < skip_.size() && skip_[passed_] == lowest_) {
        ++passed_;
      } else if ((word_of(lowest_) & bit_of(lowest_)) != 0) {
        word_of(lowest_) &= ~bit_of(lowest_);
        --count_ahead_;
      } else {
        return;
      }
    }
  }

  std::vector<std::uint64_t> skip_;
  std::size_t passed_ = 0;  // of skip_: below lowest_
  std::uint64_t lowest_ = 0;
  std::uint64_t count_ahead_ = 0;     // bits that are set
  std::vector<std::uint64_t> words_;  // a ring of bits, by ordinal: those above lowest_, delivered
};

}  // namespace stook::workers
