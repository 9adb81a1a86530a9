// The memory of one incarnation of a worker, as it lies in its memfd.
//
//   0                    header: return bitmap, ring positions
//   kSlotsOffset         result ring: `slot_count` slots of `slot_bytes`
//   first_block_offset   blocks, up to the end
//
// Mapped once by the worker, which allocates from it, and once by the parent, which reads what it
// was handed (shm/leased_arena.h).
#pragma once

#include <cstdint>

#include "shm/return_bitmap.h"
#include "shm/ring.h"
#include "shm/shared_memory.h"

namespace stook::shm {

struct ArenaHeader {
  ReturnBitmapWords<> returned;
  RingPositions<> results;
};
static_assert(sizeof(ArenaHeader) <= 3 * kPageBytes);

struct ArenaLayout {
  std::uint64_t slot_count = 0;
  std::uint64_t slot_bytes = 0;
  std::uint64_t total_bytes = 0;

  static constexpr std::uint64_t kSlotsOffset = 3 * kPageBytes;
  std::uint64_t first_block_offset() const {
    return round_up(kSlotsOffset + slot_count * slot_bytes, kPageBytes);
  }
};

inline ArenaHeader& arena_header(const Mapping& memory) {
  // A fresh memfd is all zeros, which is what every word of the header starts as.
  return *reinterpret_cast<ArenaHeader*>(memory.data());
}

}  // namespace stook::shm
