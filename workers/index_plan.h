// Which indices of a source each job of a pass loads, in which order.
//
// A shuffled order is computed index by index: a keyed permutation of 0..length-1 maps the k-th
// place of an epoch to an index, so a source of 10^12 elements costs no memory and no start-up
// time. The same (length, seed, epoch) gives the same order for ever: recorded runs depend on it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace stook::workers {

// A permutation of 0..length-1, one of very many, picked by (seed, epoch). Immutable.
//
// A Feistel network permutes the smallest power-of-two range that holds `length`; an index that
// falls outside of 0..length-1 is permuted again until it falls inside, which takes fewer than two
// turns on average and keeps it a permutation (cycle walking: Black and Rogaway, "Ciphers with
// arbitrary finite domains", 2002). Good enough for shuffling data, not for keeping secrets.
class IndexPermutation {
 public:
  IndexPermutation(std::uint64_t length, std::uint64_t seed, std::uint64_t epoch);

  // The index at `place`, which is below length.
  std::uint64_t operator()(std::uint64_t place) const;

 private:
  // Small ranges need more rounds: a round that can only choose between a few functions mixes
  // little. With 24 each of the six orders of three elements comes equally often.
  static constexpr unsigned kRounds = 8;
  static constexpr unsigned kRoundsWhenSmall = 24;
  static constexpr unsigned kSmallBits = 12;

  std::uint64_t length_;
  unsigned low_bits_ = 0;
  std::uint64_t low_mask_ = 0;
  std::uint64_t high_mask_ = 0;
  unsigned rounds_ = kRounds;
  std::array<std::uint64_t, kRoundsWhenSmall> keys_{};
};

// The jobs of a pass over a source that is indexed: single indices or batches of them, epoch after
// epoch. Belongs to one thread at a time; never blocks; knows no Python.
class IndexPlan {
 public:
  static constexpr std::uint64_t kMaxLength = std::uint64_t{1} << 62;

  struct Options {
    std::uint64_t length = 0;      // of the source, up to kMaxLength
    std::uint64_t batch_size = 0;  // 0: single indices, one a job
    bool drop_remainder = false;   // leave out an epoch's last, shorter batch
    std::optional<std::uint64_t> shuffle_seed = std::nullopt;  // none: in order
    std::uint64_t first_epoch = 0;
    std::optional<std::uint64_t> num_epochs = std::nullopt;  // none: without end
  };

  struct Job {
    std::uint64_t epoch = 0;
    std::uint64_t position = 0;  // of the job within its epoch
    // Exactly one unless there is a batch size. Valid until the plan's next call.
    std::span<const std::uint64_t> indices;
  };

  // Throws std::invalid_argument when `length` is above kMaxLength.
  explicit IndexPlan(const Options& options);

  // Fills in the next job, or returns false, from then on every time, when the pass is over. A plan
  // whose epochs have no job is over at once, also one without end. May throw std::bad_alloc the
  // first time, for a batch size beyond memory.
  bool next(Job& job);

  const Options& options() const { return options_; }
  std::uint64_t jobs_per_epoch() const { return jobs_per_epoch_; }

 private:
  Options options_;
  std::uint64_t jobs_per_epoch_;
  std::uint64_t epochs_done_ = 0;
  std::uint64_t position_ = 0;
  std::optional<IndexPermutation> permutation_;  // of the epoch under way, when shuffling
  std::vector<std::uint64_t> indices_;           // of the job handed out last
};

}  // namespace stook::workers
