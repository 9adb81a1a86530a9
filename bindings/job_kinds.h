// What the payload of a job holds (workers::JobSlot::kind).
#pragma once

#include <cstdint>

namespace stook::bindings {

enum JobKind : std::uint32_t {
  kIndexJob = 0,    // one u64: an index into the source
  kIndicesJob = 1,  // u64 each: a batch of indices
  kEncodedJob = 2,  // an envelope: the item itself
  kFailedJob = 3,   // the item could not be sent; an error payload to be sent back as the result
  // Calls of a function: `epoch` is its number, `position` where its definition lies in the
  // arguments' arena (a u64 of its length, then a pickle). The payload is an envelope.
  kCallJob = 4,  // of (args, kwargs or None): one call
  // Of a list: a call for each item, with it. The worker may come back with the results of the
  // first ones alone; the others have not run then. A batch was put together by us, out of calls
  // that took no time; a chunk by the user.
  kBatchJob = 5,
  kChunkJob = 6,
  // The same, with what is in each item.
  kStarBatchJob = 7,
  kStarChunkJob = 8,
  // Without payload: the worker that claims it ends in good order.
  kRetireJob = 9,
  // A workers::ItemsFrom, then u64 each: a batch of indices that may take further ones.
  kFilledJob = 10,
};

// An element of a loader: the worker's task makes it, and may report on it.
constexpr bool has_task(std::uint32_t kind) { return kind <= kEncodedJob || kind == kFilledJob; }
constexpr bool has_items(std::uint32_t kind) { return kind >= kBatchJob && kind <= kStarChunkJob; }
constexpr bool has_star(std::uint32_t kind) {
  return kind == kStarBatchJob || kind == kStarChunkJob;
}
constexpr bool is_batch(std::uint32_t kind) { return kind == kBatchJob || kind == kStarBatchJob; }

enum ItemKind : std::uint32_t {
  kOneItem = 0,     // an envelope
  kErrorItem = 1,   // an error payload
  kPlainItems = 2,  // results that are plain leaves: a tree for each, one after the other
};

// Before each result in the payload of a job with items, or before several that are plain. Its
// blocks are the next `moved` of the element's moved ones and the next `made` of those made for it;
// the element's payload begins with a u64, how many results there are, and a u64, how many of all
// blocks were moved.
struct ItemHeader {
  std::uint64_t bytes;  // of what follows, which is filled up to a multiple of 8
  std::uint32_t moved;
  std::uint32_t made;
  std::uint32_t kind;   // ItemKind: what follows
  std::uint32_t count;  // results in it
};
static_assert(sizeof(ItemHeader) == 24);

}  // namespace stook::bindings
