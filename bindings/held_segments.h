// Segments on their way to another process, which has their names and may not have opened them yet.
//
// Where one is to be unlinked with its last array, that array may be dropped as soon as it was
// sent. The sender holds the segment here until it has been opened.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "bindings/python_api.h"
#include "bindings/segment_object.h"

namespace stook::bindings {

// What an encoder leaves to be done about the segments whose names it told.
class SentSegments {
 public:
  // Objects of segments that go with the element, of those that do not, and arrays that hold moved
  // blocks of an element that was dropped.
  std::vector<OwnedRef> transferred;
  std::vector<OwnedRef> others;
  std::vector<OwnedRef> moved_arrays;

  void append(SentSegments&& more);
  // To be called once the message was published, or could not be: `transferred` are the other
  // side's, or unlinked. Returns those of `others` whose names would not stay by themselves, to be
  // held until they have been opened. Requires GIL; runs no Python code.
  std::vector<OwnedRef> finish(bool published);
};

// One thread at a time; requires GIL. Letting go of a segment runs no Python code.
class HeldSegments {
 public:
  // What went with `job`.
  void hold(std::uint64_t job, std::vector<OwnedRef> segments);

  // The job is over.
  void release(std::uint64_t job) {
    std::erase_if(held_, [job](const Held& held) { return held.first == job; });
  }
  void clear() { held_.clear(); }

  // For who only hears that all jobs below `delivered` were taken, and not of what came of it: each
  // was opened before the next was taken, whichever that was.
  void note_delivered(std::uint64_t delivered) {
    if (delivered == delivered_) return;
    std::erase_if(held_, [this](const Held& held) { return held.first < delivered_; });
    delivered_ = delivered;
  }

 private:
  using Held = std::pair<std::uint64_t, OwnedRef>;
  std::vector<Held> held_;
  std::uint64_t delivered_ = 0;
};

}  // namespace stook::bindings
