// Why leaves of an element are copied, where enable_profiling asks for it: a second walk over an
// element that was encoded, with the same tests in the same order as the encoder's.
#pragma once

#include <cstdint>

#include "bindings/encoder.h"
#include "bindings/python_api.h"
#include "workers/profile.h"

namespace stook::bindings {

// python/stook/_profile_reasons.py has their texts, by number.
enum class CopyReason : std::uint32_t {
  kMoved = 0,
  kSmall = 1,            // smaller than min_shared_bytes: in the envelope
  kSharedLeaf = 2,       // the array has other references
  kSharedContainer = 3,  // a container above it has
  kSharedBase = 4,       // an array that it is a view of has
  kForeignBase = 5,      // its base is no ndarray
  kWeakReference = 6,    // to it, or to an array that it is a view of
  kWriteBack = 7,        // WRITEBACKIFCOPY
  kNotFromArena = 8,     // its memory was not made in this worker's arena
  kObjectDtype = 9,      // or another that holds references: pickled
  kSubclass = 10,        // of ndarray: pickled
  kSmallView = 11,       // covers less than half of its block
  kOverlap = 12,         // its items may lie at the same place
  kOutside = 13,         // it reaches beyond its block
  kPickled = 14,         // no array: pickled, as what it is
  kPickledWhole = 15,    // in one pickle with what shares it
  kSegment = 16,         // a SharedMemoryArray: crosses as its handle
};

// Counts the leaves of `root` by their reasons. To be called after encode() was done, and before
// anything of it is dropped, with the same reference on `root`. `moved`: Encoder::moved(). Requires
// GIL; runs no Python code.
void note_copy_reasons(PyObject* root, std::uint64_t min_shared_bytes, BlockSource& blocks,
                       std::uint32_t moved, workers::ProfileCell& cell);

}  // namespace stook::bindings
