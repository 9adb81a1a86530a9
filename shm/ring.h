// A single-producer single-consumer ring of slots in memory that two processes map.
//
// Positions are monotone 64-bit counts, never reduced: there is no wrapped index, no wasted slot
// and no ABA. A slot is `position & (capacity - 1)`. One release store of the tail is the commit: a
// producer killed before it has published nothing, killed after it has published everything.
//
// The producer owns `tail`, the consumer owns `head`. Each keeps a private copy of the other's
// position and looks at the shared word only when that copy says full (or empty).
#pragma once

#include <cstdint>

#include "shm/atomics.h"

namespace stook::shm {

template <class Atomics = StdAtomics>
struct RingPositions {
  // Written by the producer (release), read by the consumer (acquire).
  alignas(kIsolation) typename Atomics::template Atomic<std::uint64_t> tail;
  // Written by the consumer (release), read by the producer (acquire).
  alignas(kIsolation) typename Atomics::template Atomic<std::uint64_t> head;
};

static_assert(sizeof(RingPositions<>) == 2 * kIsolation);

// The producer's view: private to the one thread that produces. Never blocks.
template <class Slot, class Atomics = StdAtomics>
class RingWriter {
 public:
  // `capacity` is a power of two. Both positions must be at `start` (0 in fresh memory).
  RingWriter(RingPositions<Atomics>& positions, Slot* slots, std::uint64_t capacity,
             std::uint64_t start = 0)
      : positions_(&positions), slots_(slots), mask_(capacity - 1), tail_(start), head_(start) {}

  // The slot that the next publish() commits, or nullptr when the consumer is `capacity` behind.
  Slot* prepare() {
    if (tail_ - head_ > mask_) {
      // SYNC(ring.head): released in RingReader::pop, acquired here, so that the consumer's last
      // read of the slot happens before it is overwritten.
      head_ = positions_->head.load(std::memory_order_acquire);
      if (tail_ - head_ > mask_) return nullptr;
    }
    return &slots_[tail_ & mask_];
  }

  void publish() {
    ++tail_;
    // SYNC(ring.tail): released here, acquired in RingReader::front.
    positions_->tail.store(tail_, std::memory_order_release);
  }

 private:
  RingPositions<Atomics>* positions_;
  Slot* slots_;
  std::uint64_t mask_;
  std::uint64_t tail_;
  std::uint64_t head_;  // the consumer's position when last looked at
};

// The consumer's view: one thread at a time. Never blocks. Stays usable after the producer died.
template <class Slot, class Atomics = StdAtomics>
class RingReader {
 public:
  RingReader(RingPositions<Atomics>& positions, const Slot* slots, std::uint64_t capacity,
             std::uint64_t start = 0)
      : positions_(&positions), slots_(slots), mask_(capacity - 1), head_(start), tail_(start) {}

  // The oldest published slot, or nullptr. It stays valid until pop().
  const Slot* front() {
    if (head_ == tail_) {
      // SYNC(ring.tail): released in RingWriter::publish, acquired here, so that the slot's
      // contents, and the blocks it names, are seen as they were when it was published.
      tail_ = positions_->tail.load(std::memory_order_acquire);
      // A producer is another process: a tail beyond the capacity is not ours to believe.
      if (tail_ - head_ > mask_ + 1) tail_ = head_;
      if (head_ == tail_) return nullptr;
    }
    return &slots_[head_ & mask_];
  }

  void pop() {
    ++head_;
    // SYNC(ring.head): released here, acquired in RingWriter::prepare.
    positions_->head.store(head_, std::memory_order_release);
  }

 private:
  RingPositions<Atomics>* positions_;
  const Slot* slots_;
  std::uint64_t mask_;
  std::uint64_t head_;
  std::uint64_t tail_;  // the producer's position when last looked at
};

}  // namespace stook::shm
