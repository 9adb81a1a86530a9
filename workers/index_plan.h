// Which indices of a source each job of a pass loads, in which order.
//
// A shuffled order is computed index by index: a keyed permutation of 0..length-1 maps the k-th
// place of an epoch to an index, so a source of 10^12 elements costs no memory and no start-up
// time. The same (length, seed, epoch) gives the same order for ever: recorded runs depend on it.
#pragma once

#include <array>
#include <cstddef>
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

// The items of an epoch from a place on: what a job needs to take more of them than it was dealt.
// Travels in a job's payload.
struct ItemsFrom {
  std::uint64_t epoch;
  std::uint64_t place;     // of the first one
  std::uint64_t step;      // from one to the next: of every so many places one is this shard's
  std::uint64_t length;    // of the source
  std::uint64_t shuffled;  // 1, or 0: the places are the indices
  std::uint64_t seed;

  // The index of the `number`-th of them, counted from 0; none beyond the epoch's end.
  std::optional<std::uint64_t> at(std::uint64_t number) const;
};

// The jobs of a pass over a source that is indexed: single indices or batches of them, epoch after
// epoch. Belongs to one thread at a time; never blocks; knows no Python.
//
// Words: the places of an epoch are 0..length-1, each of which the permutation maps to an index. A
// shard takes every shard_count-th place; its items are numbered 0, 1, ... within the epoch. A job
// takes one item, or the next batch_size; jobs have a position within their epoch, and an ordinal,
// counted from 0 at the first job that this plan deals, over all epochs.
class IndexPlan {
 public:
  static constexpr std::uint64_t kMaxLength = std::uint64_t{1} << 62;
  // Items of one job. A batch size may be larger where the source is not.
  static constexpr std::uint64_t kMaxJobItems = std::uint64_t{1} << 32;

  struct Options {
    std::uint64_t length = 0;      // of the source, up to kMaxLength
    std::uint64_t batch_size = 0;  // 0: single indices, one a job
    bool drop_remainder = false;   // leave out an epoch's last, shorter batch
    std::optional<std::uint64_t> shuffle_seed = std::nullopt;  // none: in order
    std::uint64_t first_epoch = 0;
    // The first one included, also if only its rest is left. None: without end.
    std::optional<std::uint64_t> num_epochs = std::nullopt;
    // The shard takes the places shard_index, shard_index + shard_count, ...: ceil((length -
    // shard_index) / shard_count) items, so that shards differ by one item at most.
    std::uint64_t shard_index = 0;
    std::uint64_t shard_count = 1;
    // Where the first epoch begins: after this many jobs ...
    std::uint64_t first_position = 0;
    // ... of an epoch whose places below this one are left out. The shard's places are first_place
    // + shard_index, + shard_count, ... then.
    std::uint64_t first_place = 0;
    // Ordinals of jobs that are left out, in rising order. They stay taken.
    std::vector<std::uint64_t> skip = {};
    // A job may take more items than planned; see rewind(). Not with `skip`.
    bool fill = false;
    // With `fill`: the first job's first item. None: first_position * batch_size.
    std::optional<std::uint64_t> first_item = std::nullopt;
  };

  struct Job {
    std::uint64_t epoch = 0;
    std::uint64_t position = 0;  // of the job within its epoch
    // The same among those of all shards, which are dealt in turn: what tells shards apart where
    // draws depend on it. Without shards it is the position.
    std::uint64_t number = 0;
    std::uint64_t ordinal = 0;  // of the job within the pass
    std::uint64_t place = 0;    // of the first item, within the epoch
    // Exactly one unless there is a batch size. Valid until the plan's next call.
    std::span<const std::uint64_t> indices;
  };

  // Throws std::invalid_argument, which says what is wrong, when an option is beyond what it may be
  // or does not go with another.
  explicit IndexPlan(Options options);

  // Fills in the next job, or returns false, from then on every time, when the pass is over. A plan
  // whose epochs have no job is over at once, also one without end. Throws std::invalid_argument
  // for a batch beyond kMaxJobItems, and may throw std::bad_alloc for one beyond memory: then that
  // job is still the next one.
  bool next(Job& job);

  // With `fill`: goes on with the job of `ordinal`, as `position` of `epoch`, from `item` on. The
  // jobs that were dealt beyond it are dealt again, and differ. Throws std::invalid_argument for an
  // epoch before the first one, and without `fill`.
  void rewind(std::uint64_t epoch, std::uint64_t position, std::uint64_t item,
              std::uint64_t ordinal);

  const Options& options() const { return options_; }
  // Of a whole epoch of this shard; with `fill`, the most there can be.
  std::uint64_t jobs_per_epoch() const { return jobs_per_epoch_; }
  // Of the first epoch, those before first_position included: fewer with a first_place.
  std::uint64_t jobs_in_first_epoch() const;
  // The items from the first one of `job` on.
  ItemsFrom items_from(const Job& job) const {
    return {job.epoch,
            job.place,
            options_.shard_count,
            options_.length,
            options_.shuffle_seed.has_value() ? std::uint64_t{1} : 0,
            options_.shuffle_seed.value_or(0)};
  }
  // The item that the plan began with.
  std::uint64_t first_item() const { return first_item_; }
  // Items of this shard in an epoch.
  std::uint64_t items_in(std::uint64_t epoch) const;
  // Items that the job which begins with `item` is planned to take.
  std::uint64_t planned_items(std::uint64_t epoch, std::uint64_t item) const;

 private:
  std::uint64_t first_place_of(std::uint64_t epoch) const {
    return epoch == options_.first_epoch ? options_.first_place : 0;
  }
  std::uint64_t jobs_of(std::uint64_t items) const;
  bool epoch_is_over() const;

  Options options_;
  std::uint64_t batch_;  // items of a whole job
  std::uint64_t jobs_per_epoch_;
  std::uint64_t epochs_done_ = 0;
  std::uint64_t position_;
  std::uint64_t item_ = 0;  // that the next job begins with
  std::uint64_t first_item_ = 0;
  std::uint64_t ordinal_ = 0;
  std::uint64_t items_;                          // of the epoch under way
  std::size_t skipped_ = 0;                      // of options_.skip
  std::optional<IndexPermutation> permutation_;  // of the epoch under way, when shuffling
  std::vector<std::uint64_t> indices_;           // of the job handed out last
};

}  // namespace stook::workers
