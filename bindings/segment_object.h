// One mapping of a named segment, as a Python object: the base of every array over it.
//
// Views, DLPack exports and torch tensors hold it, so the mapping goes exactly when nobody can see
// it any more (shm::Segment::release).
#pragma once

#include <vector>

#include "bindings/python_api.h"
#include "shm/segment.h"

namespace stook::bindings {

// New reference; takes the segment over, also if this fails (nullptr with an error set). GIL.
PyObject* make_segment_object(shm::Segment::Pointer segment);

// New reference to the object that has the segment `name` mapped in this process already, if its
// name still leads to it; else attaches the segment. One mapping serves all handles of a segment
// that come to a process. nullptr with an error set. Requires GIL.
PyObject* attach_segment_object(const char* name);

// Somebody was told the name of the segment under `array`. Where nobody was, nobody can ever ask
// for it, and the process that created it removes it with the last array, or when it ends.
void note_name_is_known(PyArrayObject* array);

// While one lives, the segments whose names its thread tells (note_name_is_known), pickling of
// arrays included: so an encoder learns what it sends, also of arrays that it cannot see.
class ToldNames {
 public:
  explicit ToldNames(std::vector<OwnedRef>& segment_objects);
  ~ToldNames();
  ToldNames(const ToldNames&) = delete;
  ToldNames& operator=(const ToldNames&) = delete;

 private:
  std::vector<OwnedRef>* outer_;  // of an encoder that called user code, which encodes
};

// The segment that such an object holds.
shm::Segment* segment_in(PyObject* object);

bool is_segment(PyObject* object);

// True if the chain of bases of `array` ends at a segment.
bool leads_to_segment(PyArrayObject* array);

// The segment at the end of the chain, or nullptr with an error set. Lives as long as the array.
// Requires GIL.
shm::Segment* segment_of(PyArrayObject* array);

}  // namespace stook::bindings
