// Writes an element down and decides, leaf by leaf, what is handed over and what is copied.
//
// The hand-over rule: a leaf is moved if nobody but the element can see it, so that the worker can
// neither read nor write it afterwards:
//   - every container from the element down to it is exactly tuple, list or dict, with one
//   reference;
//   - the leaf and each array on its base chain is exactly ndarray, with one reference, without
//   weak
//     references and without WRITEBACKIFCOPY, and its dtype holds no references;
//   - the last base owns its data, got it from our handler, and the data starts a block of this
//   arena;
//   - the view covers at least half of that block, and no two of its items overlap.
// Everything else is copied, once. A SharedMemoryArray crosses as its handle, which may be written
// here or by pickle. If this process created its segment and nobody but the element holds it, in
// whatever arrays and objects, the segment is transferred: the other side is to unlink it. That
// shows when the element has been dropped (let_go_of).
//
// All Python code that encoding needs (pickling) runs in prepare steps; the walk that tests for
// uniqueness and the publication after it run none, so that nothing changes in between. An element
// with segments is dropped in between, which may run user code; what is moved is held meanwhile.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "bindings/envelope.h"
#include "bindings/held_segments.h"
#include "bindings/python_api.h"
#include "shm/block_allocator.h"
#include "shm/segment.h"
#include "workers/protocol.h"

namespace stook::bindings {

// Where copied leaves go, and which memory may be handed over as it is.
class BlockSource {
 public:
  virtual ~BlockSource() = default;
  struct Destination {
    std::byte* data;
    workers::BlockRef ref;
  };
  virtual std::optional<Destination> allocate(std::uint64_t bytes) = 0;
  // The block of ours that starts at `data`, if there is one.
  virtual std::optional<shm::Block> find(const void* data) = 0;
  // Offset in the arena of an address within it.
  virtual std::uint64_t offset_of(const void* address) = 0;
  // Gives back what allocate() gave.
  virtual void discard(const workers::BlockRef& block) = 0;
};

enum class EncodeResult {
  kDone,
  kPythonError,  // a Python exception is set
  kNoRoom,       // the copied leaves do not fit: `requested_bytes`
};

class Encoder {
 public:
  // `pickle_objects(list, min_bytes) -> (bytes, [PickleBuffer, ...])` and `pickle_dtype(dtype) ->
  // bytes` are Python's; borrowed for the encoder's life.
  Encoder(BlockSource& blocks, std::uint64_t min_shared_bytes, PyObject* pickle_objects,
          PyObject* pickle_dtype);
  ~Encoder();
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  // Encodes `root`, on which the caller holds one reference. With `may_move`, leaves are handed
  // over where the rule allows. Requires GIL; runs Python code only before the last walk.
  EncodeResult encode(PyObject* root, bool may_move);

  // Of an element that was encoded: where it told names of segments, drops it and transfers those
  // that are nobody's then. Nothing otherwise: `root` is to be dropped once it was published. To be
  // called before anything below is asked for. May run Python code.
  void let_go_of(OwnedRef& root);

  // Of the last encode() that was done. The moved blocks are still held by arrays in `root`, or
  // here.
  std::span<const std::byte> payload() const { return writer_.bytes(); }
  std::span<const workers::BlockRef> moved_blocks() const { return moved_blocks_; }
  std::span<const workers::BlockRef> made_blocks() const { return made_blocks_; }
  // Of the arrays in the element.
  std::uint64_t array_bytes() const { return array_bytes_; }
  std::uint32_t moved() const { return moved_; }
  std::uint32_t copied() const { return copied_; }
  std::uint64_t requested_bytes() const { return requested_bytes_; }
  std::uint64_t min_shared_bytes() const { return min_shared_bytes_; }
  // Segments whose names are at the payload's end: the other side is to unlink them.
  std::uint32_t transferred() const { return static_cast<std::uint32_t>(sent_.transferred.size()); }
  // What is to be kept until the element was published, and finished then.
  SentSegments take_sent() { return std::exchange(sent_, {}); }

 private:
  // Deeper trees go to pickle, which says what it thinks of them.
  static constexpr int kMaxDepth = 200;

  enum class Walk { kDone, kNeedsPickle, kPythonError };
  struct PendingCopy {
    std::size_t patch_at;  // where (u32 block, u64 offset) go
    // Owned: a container that others see may lose it while a copy releases the GIL.
    OwnedRef array;             // or nothing, and
    const void* raw = nullptr;  // this
    std::uint64_t bytes = 0;
  };
  struct PickledDtype {
    OwnedRef dtype;  // so that its address stays its own
    std::string bytes;
    std::vector<OwnedRef> names;  // the tuples of field names in it when it was pickled
  };

  void reset();
  Walk walk(PyObject* object, bool unique, int depth);
  Walk walk_array(PyArrayObject* array, bool unique);
  Walk walk_segment_array(PyArrayObject* array);
  Walk walk_scalar(PyObject* scalar);
  bool memoize(PyObject* object, bool unique);
  Walk write_dtype(PyArray_Descr* dtype);
  // The pickle of this very dtype as it is now, or nullptr.
  const PickledDtype* find_pickled(PyArray_Descr* dtype);
  bool try_move(PyArrayObject* array, bool unique);
  void write_shape(PyArrayObject* array);
  void write_strides(PyArrayObject* array);
  bool write_inline(PyArrayObject* array);
  Walk write_pickled(PyObject* object);

  bool collect_others(PyObject* object, PyObject* others, bool& has_shared, int depth);
  bool prepare_pickle(PyObject* root, bool whole);
  bool pickle(PyObject* list);
  bool prepare_dtypes();
  void write_pickle_section();
  EncodeResult copy_leaves();
  bool copy_array(PyArrayObject* array, std::byte* to);
  void drop_pickle();

  BlockSource& blocks_;
  std::uint64_t min_shared_bytes_;
  PyObject* pickle_objects_;
  PyObject* pickle_dtype_;

  EnvelopeWriter writer_;
  std::vector<workers::BlockRef> moved_blocks_;
  std::vector<workers::BlockRef> made_blocks_;
  std::vector<PendingCopy> copies_;
  std::vector<PyObject*> moved_arrays_;  // borrowed from the element
  // Until let_go_of(), `others` are the objects of all segments whose names were told, in any
  // order, some of them more than once.
  SentSegments sent_;
  std::unordered_map<PyObject*, std::uint32_t> memo_;
  std::uint64_t array_bytes_ = 0;
  std::uint32_t moved_ = 0;
  std::uint32_t copied_ = 0;
  std::uint64_t requested_bytes_ = 0;
  bool may_move_ = false;

  // What the last prepare step pickled.
  bool whole_ = false;
  std::unordered_map<PyObject*, std::uint32_t> others_;
  OwnedRef others_list_;
  OwnedRef pickle_bytes_;
  std::vector<Py_buffer> pickle_buffers_;
  std::vector<OwnedRef> wanted_dtypes_;  // found in the last walk, and not pickled
  std::unordered_map<PyArray_Descr*, PickledDtype> dtypes_;
  std::vector<PyObject*> names_;  // scratch, borrowed
};

}  // namespace stook::bindings
