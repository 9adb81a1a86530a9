// What a worker needs for jobs that are calls: the functions, and the results of several calls
// brought together.
//
// Requires the GIL throughout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "bindings/encoder.h"
#include "bindings/envelope.h"
#include "bindings/job_kinds.h"
#include "bindings/python_api.h"
#include "shm/shared_memory.h"
#include "workers/worker.h"

namespace stook::bindings {

// The functions that this worker was sent so far, by number.
class FunctionTable {
 public:
  // `load_function(bytes) -> callable` is Python's; borrowed.
  explicit FunctionTable(PyObject* load_function) : load_function_(load_function) {}
  ~FunctionTable();
  FunctionTable(const FunctionTable&) = delete;
  FunctionTable& operator=(const FunctionTable&) = delete;

  // The function of a job; nothing, with a Python error set, if its definition cannot be loaded.
  OwnedRef find(const workers::Job& job, const shm::Mapping& arguments);

 private:
  // Lambdas are a function each time they are submitted. What falls out is loaded again if it comes
  // again: its definition stays in the arguments' arena for as long as it may come.
  static constexpr std::size_t kMost = 64;
  struct Entry {
    PyObject* function;  // owned
    std::uint64_t last_use;
  };
  void drop_oldest();

  PyObject* load_function_;
  std::unordered_map<std::uint64_t, Entry> entries_;
  std::uint64_t uses_ = 0;
};

// Results of several calls, each encoded by itself: what two of them have in common becomes two
// things, as if each had been sent alone.
class BatchDraft {
 public:
  void clear();
  // A result, as `encoder` has just encoded it; it is kept, for its arrays hold what was moved. Or
  // nothing, if the encoder has let go of it.
  void add(OwnedRef result, Encoder& encoder);
  // A result of which nothing has to be kept; false, and nothing is added, if it is no plain leaf.
  bool add_plain(PyObject* result);
  void add_error(const std::string& payload);
  std::uint64_t array_bytes() const noexcept { return array_bytes_; }
  std::span<const workers::BlockRef> made_blocks() const noexcept { return made_; }
  // Spans of the draft are valid until clear(). Nothing may be added after this.
  void fill(workers::ResultDraft& draft);
  SentSegments& sent() noexcept { return sent_; }

 private:
  void append_item(const ItemHeader& header, const void* bytes);
  void close_plain();

  EnvelopeWriter payload_;
  std::size_t plain_at_ = 0;  // the header of the plain results that are being added; 0: none
  std::uint32_t plain_count_ = 0;
  std::vector<workers::BlockRef> moved_;
  std::vector<workers::BlockRef> made_;
  std::vector<OwnedRef> results_;
  std::uint64_t count_ = 0;
  std::uint64_t array_bytes_ = 0;
  std::uint32_t moved_leaves_ = 0;
  std::uint32_t copied_leaves_ = 0;
  SentSegments sent_;
  std::vector<std::byte> names_;  // of the segments that go with any of them
};

// function(*args, **kwargs) of a pair (args, kwargs or None), which is dropped before the result is
// looked at: what user code returns may be what it was given.
OwnedRef call_with_pair(PyObject* function, OwnedRef pair);

// function(item), or function(*item).
OwnedRef call_with_item(PyObject* function, OwnedRef item, bool star);

}  // namespace stook::bindings
