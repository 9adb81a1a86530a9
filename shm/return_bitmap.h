// Blocks on their way back: one bit per block, set by whoever drops the last array over it.
//
// The holder (any thread of the parent, in any order, from destructors, without the GIL) sets a
// bit; the owner (the worker) takes all set bits away at once. Wait-free on both sides, no capacity
// to overflow, no linked list and so no ABA. The words lie in the owner's arena; nothing else about
// the allocation does, so there is nothing here that a killed process could leave half-made.
#pragma once

#include <bit>
#include <cstdint>

#include "shm/atomics.h"

namespace stook::shm {

template <class Atomics = StdAtomics, std::uint32_t kWordCount = 1024>
struct ReturnBitmapWords {
  static constexpr std::uint32_t kBlocks = kWordCount * 64;
  static constexpr std::uint32_t kSummaryWords = (kWordCount + 63) / 64;

  // Both are set by releasing threads of the holder and cleared by the owner.
  alignas(kIsolation) typename Atomics::template Atomic<std::uint64_t> summary[kSummaryWords];
  alignas(kIsolation) typename Atomics::template Atomic<std::uint64_t> words[kWordCount];
};

static_assert(sizeof(ReturnBitmapWords<>) == 128 + 8192);

// Gives `block` back. Any thread of the holder; each block once per hand-over (the caller's own
// `held` bits see to that).
template <class Atomics, std::uint32_t kWordCount>
void return_block(ReturnBitmapWords<Atomics, kWordCount>& bitmap, std::uint32_t block) {
  const std::uint32_t word = block / 64;
  // SYNC(return.word): released here, acquired in harvest_blocks, so that the last read of the
  // block's bytes happens before the owner writes them again.
  const std::uint64_t before =
      bitmap.words[word].fetch_or(std::uint64_t{1} << (block % 64), std::memory_order_release);
  // Whoever turned the word from empty to non-empty announces it; others ride along: their bit is
  // in the word that the announcer's summary bit makes the owner look at.
  if (before == 0) {
    // SYNC(return.summary): released here, acquired in harvest_blocks, so that an owner which sees
    // the summary bit also sees the word's.
    bitmap.summary[word / 64].fetch_or(std::uint64_t{1} << (word % 64), std::memory_order_release);
  }
}

// Calls `take(block)` for every returned block below `block_count`, and clears it. Owner only.
template <class Atomics, std::uint32_t kWordCount, class Take>
void harvest_blocks(ReturnBitmapWords<Atomics, kWordCount>& bitmap, std::uint32_t block_count,
                    Take&& take) {
  const std::uint32_t summaries = (block_count + 4095) / 4096;
  for (std::uint32_t s = 0; s < summaries; ++s) {
    // Relaxed is enough to decide whether to look: a bit missed now is seen at the next harvest.
    if (bitmap.summary[s].load(std::memory_order_relaxed) == 0) continue;
    // SYNC(return.summary): released in return_block, acquired here.
    std::uint64_t marked = bitmap.summary[s].exchange(0, std::memory_order_acquire);
    for (; marked != 0; marked &= marked - 1) {
      const std::uint32_t word = s * 64 + static_cast<std::uint32_t>(std::countr_zero(marked));
      // SYNC(return.word): released in return_block, acquired here.
      std::uint64_t returned = bitmap.words[word].exchange(0, std::memory_order_acquire);
      for (; returned != 0; returned &= returned - 1) {
        take(word * 64 + static_cast<std::uint32_t>(std::countr_zero(returned)));
      }
    }
  }
}

}  // namespace stook::shm
