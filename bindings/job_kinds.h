// What the payload of a job holds (workers::JobSlot::kind).
#pragma once

#include <cstdint>

namespace stook::bindings {

enum JobKind : std::uint32_t {
  kIndexJob = 0,    // one u64: an index into the source
  kIndicesJob = 1,  // u64 each: a batch of indices
  kEncodedJob = 2,  // an envelope: the item itself
  kFailedJob = 3,   // the item could not be sent; an error payload to be sent back as the result
};

}  // namespace stook::bindings
