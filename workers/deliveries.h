// Which jobs of a pass were delivered: what a state needs to go on with exactly the others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <utility>
#include <vector>

namespace stook::workers {

// Counts jobs by their ordinals within a pass (see index_plan.h). Belongs to one thread at a time;
// never blocks. An order that was kept costs no memory; without one each job that is ahead of the
// lowest missing one does, and these are fewer than a window.
class Deliveries {
 public:
  // `skip`: ordinals, in rising order, that are not dealt and count as delivered.
  explicit Deliveries(std::vector<std::uint64_t> skip = {})
      : skip_(std::move(skip)), ahead_(skip_.begin(), skip_.end()) {
    absorb();
  }

  // The job that was dealt as the `dealt`-th, counted from 0. Once for each.
  void add(std::uint64_t dealt) {
    const std::uint64_t ordinal = ordinal_of(dealt);
    if (ordinal != lowest_) {
      ahead_.insert(ordinal);
      return;
    }
    ++lowest_;
    absorb();
  }

  // Every job with a smaller ordinal was delivered, and this one was not.
  std::uint64_t lowest() const { return lowest_; }
  // Those above it that were, too, in rising order.
  const std::set<std::uint64_t>& ahead() const { return ahead_; }

 private:
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

  void absorb() {
    while (!ahead_.empty() && *ahead_.begin() == lowest_) {
      ahead_.erase(ahead_.begin());
      ++lowest_;
    }
  }

  std::vector<std::uint64_t> skip_;
  std::uint64_t lowest_ = 0;
  std::set<std::uint64_t> ahead_;
};

}  // namespace stook::workers
