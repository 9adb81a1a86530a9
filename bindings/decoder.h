// Builds the element that an envelope describes.
//
// Nothing in an envelope is believed: offsets, sizes and shapes are held against the blocks that
// came with it before an array is made over them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "bindings/envelope.h"
#include "bindings/python_api.h"
#include "shm/leased_arena.h"
#include "workers/protocol.h"

namespace stook::bindings {

class Decoder {
 public:
  // `unpickle_objects(bytes, [buffer, ...]) -> list` and `unpickle_dtype(bytes) -> dtype` are
  // Python's; borrowed for the decoder's life.
  Decoder(PyObject* unpickle_objects, PyObject* unpickle_dtype);
  ~Decoder();
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

  // Arrays over the blocks, each of which `arena` holds leased; takes over those leases, also on
  // failure. With `copy_out`, arrays of the heap instead. nullptr with a Python error set on
  // failure. Requires GIL; may run Python code (unpickling). With `interrupt`, what a signal
  // handler raises in that comes to be there, and the code is run once more: it may be set whatever
  // is returned, and is the program's.
  PyObject* decode_leased(std::span<const std::byte> payload,
                          std::span<const workers::BlockRef> blocks, shm::LeasedArena* arena,
                          bool copy_out, OwnedRef* interrupt = nullptr);

  // Plain leaves, one after the other, into `list` from `at` on. False with a Python error set on
  // failure; what is not there yet then is nullptr in the list. Runs no Python code.
  bool decode_plain(std::span<const std::byte> payload, PyObject* list, Py_ssize_t at,
                    Py_ssize_t count);

  // Copies of what lies in `memory`: the arguments' arena, which stays the other side's.
  PyObject* decode_copied(std::span<const std::byte> payload,
                          std::span<const workers::BlockRef> blocks, const shm::Mapping& memory);

 private:
  // One block as this decoding sees it.
  struct Source {
    std::uint64_t offset;
    std::uint64_t bytes;
    PyObject* lease;  // nullptr: copy
  };
  PyObject* decode(std::span<const std::byte> payload, const std::byte* memory,
                   const std::vector<Source>& blocks);

  class Reading;

  PyObject* unpickle_objects_;
  PyObject* unpickle_dtype_;
  std::unordered_map<std::string, PyArray_Descr*> dtypes_;  // values are owned
};

}  // namespace stook::bindings
