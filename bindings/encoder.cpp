#include "bindings/encoder.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <utility>

#include "bindings/array_layout.h"
#include "bindings/numpy_allocator.h"
#include "bindings/plain_leaf.h"
#include "bindings/segment_object.h"
#include "bindings/shared_memory_array.h"

namespace stook::bindings {
namespace {

constexpr std::uint64_t kLeafAlignment = 64;
constexpr std::size_t kMaxDtypes = 256;

constexpr std::uint64_t align_leaf(std::uint64_t bytes) {
  return (bytes + kLeafAlignment - 1) / kLeafAlignment * kLeafAlignment;
}

bool is_number(int type_num) { return type_num >= NPY_BOOL && type_num <= NPY_CLONGDOUBLE; }

bool is_swapped(PyArray_Descr* dtype) { return dtype->byteorder == NPY_OPPBYTE; }

bool has_metadata(PyArray_Descr* dtype) {
  PyObject* metadata = PyDataType_METADATA(dtype);
  return metadata != nullptr && metadata != Py_None;
}

}  // namespace

Encoder::Encoder(BlockSource& blocks, std::uint64_t min_shared_bytes, PyObject* pickle_objects,
                 PyObject* pickle_dtype)
    : blocks_(blocks),
      min_shared_bytes_(min_shared_bytes),
      pickle_objects_(pickle_objects),
      pickle_dtype_(pickle_dtype) {}

Encoder::~Encoder() { drop_pickle(); }

void Encoder::reset() {
  writer_.clear();
  moved_blocks_.clear();
  made_blocks_.clear();
  copies_.clear();
  moved_arrays_.clear();
  if (!memo_.empty()) memo_.clear();
  wanted_dtypes_.clear();
  array_bytes_ = 0;
  moved_ = 0;
  copied_ = 0;
}

void Encoder::drop_pickle() {
  for (Py_buffer& buffer : pickle_buffers_) PyBuffer_Release(&buffer);
  pickle_buffers_.clear();
  if (!others_.empty()) others_.clear();
  others_list_.reset();
  pickle_bytes_.reset();
  whole_ = false;
}

EncodeResult Encoder::encode(PyObject* root, bool may_move) {
  may_move_ = may_move;
  sent_ = {};
  const ToldNames telling(sent_.others);
  // Only between elements: an element may have more dtypes than are kept.
  if (dtypes_.size() >= kMaxDtypes) dtypes_.clear();
  bool pickled = false;
  for (;;) {
    reset();
    writer_.put(std::uint32_t{0});  // names
    write_pickle_section();
    const Walk outcome = whole_ ? write_pickled(root) : walk(root, is_uniquely_referenced(root), 0);
    if (outcome == Walk::kDone && wanted_dtypes_.empty()) break;
    bool prepared = false;
    if (outcome == Walk::kDone) {
      prepared = prepare_dtypes();
    } else if (outcome == Walk::kNeedsPickle) {
      drop_pickle();
      // A second time: pickling changed the element. Then one pickle takes all of it at once.
      prepared = prepare_pickle(root, pickled);
      pickled = true;
    }
    if (!prepared) {
      drop_pickle();
      sent_ = {};
      return EncodeResult::kPythonError;
    }
  }
  const EncodeResult result = copy_leaves();
  copies_.clear();
  drop_pickle();
  if (result != EncodeResult::kDone) sent_ = {};
  return result;
}

// ------------------------------------------------------------------ the walk: no Python code

Encoder::Walk Encoder::walk(PyObject* object, bool unique, int depth) {
  if (write_plain(writer_, object)) return Walk::kDone;
  if (PyArray_CheckExact(object)) return walk_array(as_array(object), unique);
  PyTypeObject* type = Py_TYPE(object);
  const bool is_container = type == &PyDict_Type || type == &PyTuple_Type || type == &PyList_Type;
  if (!is_container) {
    if (PyArray_IsScalar(object, Generic)) return walk_scalar(object);
    if (is_shared_memory_array(object)) return walk_segment_array(as_array(object));
    return write_pickled(object);
  }
  if (depth >= kMaxDepth) return write_pickled(object);
  if (memoize(object, unique)) return Walk::kDone;

  if (type == &PyDict_Type) {
    writer_.put(Tag::kDict);
    writer_.put(static_cast<std::uint64_t>(PyDict_GET_SIZE(object)));
    Py_ssize_t position = 0;
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    while (PyDict_Next(object, &position, &key, &value) != 0) {
      Walk outcome = walk(key, false, depth + 1);
      if (outcome != Walk::kDone) return outcome;
      outcome = walk(value, unique && is_uniquely_referenced(value), depth + 1);
      if (outcome != Walk::kDone) return outcome;
    }
    return Walk::kDone;
  }
  writer_.put(type == &PyTuple_Type ? Tag::kTuple : Tag::kList);
  const Py_ssize_t length = Py_SIZE(object);
  writer_.put(static_cast<std::uint64_t>(length));
  for (Py_ssize_t i = 0; i < length; ++i) {
    PyObject* item =
        type == &PyTuple_Type ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i);
    const Walk outcome = walk(item, unique && is_uniquely_referenced(item), depth + 1);
    if (outcome != Walk::kDone) return outcome;
  }
  return Walk::kDone;
}

// Writes a reference if `object` was met before (true), or marks it as one to refer to. What has
// one reference cannot be met twice, so the common element never touches the memo.
bool Encoder::memoize(PyObject* object, bool unique) {
  if (unique || is_uniquely_referenced(object)) return false;
  const auto [entry, is_new] = memo_.try_emplace(object, static_cast<std::uint32_t>(memo_.size()));
  if (is_new) {
    writer_.put(Tag::kMemoized);
    return false;
  }
  writer_.put(Tag::kReference);
  writer_.put(entry->second);
  return true;
}

Encoder::Walk Encoder::write_pickled(PyObject* object) {
  writer_.put(Tag::kPickled);
  if (whole_) {
    writer_.put(kWholePickle);
    return Walk::kDone;
  }
  const auto other = others_.find(object);
  if (other == others_.end()) return Walk::kNeedsPickle;
  writer_.put(other->second);
  return Walk::kDone;
}

Encoder::Walk Encoder::walk_scalar(PyObject* scalar) {
  OwnedRef owner(reinterpret_cast<PyObject*>(PyArray_DescrFromScalar(scalar)));
  if (!owner) {
    PyErr_Clear();
    return write_pickled(scalar);
  }
  auto* dtype = reinterpret_cast<PyArray_Descr*>(owner.get());
  if (!is_number(dtype->type_num) || Py_TYPE(scalar) != dtype->typeobj || has_metadata(dtype)) {
    return write_pickled(scalar);
  }
  writer_.put(Tag::kScalar);
  const Walk outcome = write_dtype(dtype);
  if (outcome != Walk::kDone) return outcome;
  alignas(npy_clongdouble) char value[sizeof(npy_clongdouble)];
  PyArray_ScalarAsCtype(scalar, value);
  writer_.put_bytes(value, static_cast<std::size_t>(PyDataType_ELSIZE(dtype)));
  return Walk::kDone;
}

Encoder::Walk Encoder::write_dtype(PyArray_Descr* dtype) {
  const int type_num = dtype->type_num;
  if (!has_metadata(dtype)) {
    if (is_number(type_num) || type_num == NPY_HALF) {
      writer_.put(DtypeTag::kNumber);
      writer_.put(static_cast<std::uint8_t>(type_num));
      writer_.put(static_cast<std::uint8_t>(is_swapped(dtype)));
      return Walk::kDone;
    }
    const bool plain_void = type_num == NPY_VOID && PyDataType_NAMES(dtype) == nullptr &&
                            PyDataType_SUBARRAY(dtype) == nullptr &&
                            dtype->typeobj == &PyVoidArrType_Type;
    if (type_num == NPY_STRING || type_num == NPY_UNICODE || plain_void) {
      writer_.put(DtypeTag::kFlexible);
      writer_.put(static_cast<std::uint8_t>(type_num));
      writer_.put(static_cast<std::uint8_t>(is_swapped(dtype)));
      writer_.put(static_cast<std::int64_t>(PyDataType_ELSIZE(dtype)));
      return Walk::kDone;
    }
  }
  const PickledDtype* known = find_pickled(dtype);
  if (known == nullptr) {
    // The walk goes on, so that one further walk finds all of them.
    Py_INCREF(dtype);
    wanted_dtypes_.emplace_back(reinterpret_cast<PyObject*>(dtype));
    return Walk::kDone;
  }
  writer_.put(DtypeTag::kPickled);
  writer_.put(static_cast<std::uint32_t>(known->bytes.size()));
  writer_.put_bytes(known->bytes.data(), known->bytes.size());
  return Walk::kDone;
}

const Encoder::PickledDtype* Encoder::find_pickled(PyArray_Descr* dtype) {
  const auto known = dtypes_.find(dtype);
  if (known == dtypes_.end()) return nullptr;
  names_.clear();
  collect_names(dtype, names_);
  const bool same = std::equal(
      names_.begin(), names_.end(), known->second.names.begin(), known->second.names.end(),
      [](const PyObject* now, const OwnedRef& then) { return now == then.get(); });
  return same ? &known->second : nullptr;
}

void Encoder::write_shape(PyArrayObject* array) {
  const int dimensions = PyArray_NDIM(array);
  writer_.put(static_cast<std::uint8_t>(dimensions));
  writer_.put_bytes(PyArray_DIMS(array), sizeof(npy_intp) * static_cast<std::size_t>(dimensions));
}

Encoder::Walk Encoder::walk_array(PyArrayObject* array, bool unique) {
  PyArray_Descr* dtype = PyArray_DESCR(array);
  if (!is_plain_dtype(dtype)) return write_pickled(reinterpret_cast<PyObject*>(array));
  if (memoize(reinterpret_cast<PyObject*>(array), unique)) return Walk::kDone;
  const auto bytes = static_cast<std::uint64_t>(PyArray_NBYTES(array));
  array_bytes_ += bytes;
  if (bytes < min_shared_bytes_) {
    writer_.put(Tag::kInlineArray);
    const Walk outcome = write_dtype(dtype);
    if (outcome != Walk::kDone) return outcome;
    return write_inline(array) ? Walk::kDone : Walk::kPythonError;
  }
  writer_.put(Tag::kBlockArray);
  const Walk outcome = write_dtype(dtype);
  if (outcome != Walk::kDone) return outcome;
  write_shape(array);
  if (try_move(array, unique)) return Walk::kDone;

  const NPY_ORDER order = order_of_copy(array);
  if (order == NPY_KEEPORDER) {
    write_strides(array);
  } else {
    const int dimensions = PyArray_NDIM(array);
    npy_intp strides[NPY_MAXDIMS];
    npy_intp step = PyArray_ITEMSIZE(array);
    for (int i = 0; i < dimensions; ++i) {
      const int axis = order == NPY_FORTRANORDER ? i : dimensions - 1 - i;
      strides[axis] = step;
      step *= PyArray_DIM(array, axis);
    }
    writer_.put_bytes(strides, sizeof(npy_intp) * static_cast<std::size_t>(dimensions));
  }
  Py_INCREF(array);
  copies_.push_back({writer_.skip(sizeof(std::uint32_t) + sizeof(std::uint64_t)),
                     OwnedRef(reinterpret_cast<PyObject*>(array)), nullptr, bytes});
  ++copied_;
  return Walk::kDone;
}

Encoder::Walk Encoder::walk_segment_array(PyArrayObject* array) {
  shm::Segment* segment = segment_of(array);
  if (segment == nullptr) return Walk::kPythonError;
  note_name_is_known(array);
  auto* object = reinterpret_cast<PyObject*>(array);
  if (memoize(object, is_uniquely_referenced(object))) return Walk::kDone;
  array_bytes_ += static_cast<std::uint64_t>(PyArray_NBYTES(array));
  ++moved_;
  writer_.put(Tag::kSegmentArray);
  const Walk outcome = write_dtype(PyArray_DESCR(array));
  if (outcome != Walk::kDone) return outcome;
  write_shape(array);
  write_strides(array);
  writer_.put(
      static_cast<std::uint64_t>(PyArray_BYTES(array) - reinterpret_cast<char*>(segment->data())));
  writer_.put(static_cast<std::uint64_t>(segment->name().size()));
  writer_.put_bytes(segment->name().data(), segment->name().size());
  return Walk::kDone;
}

void Encoder::let_go_of(OwnedRef& root) {
  std::vector<OwnedRef>& told = sent_.others;
  if (told.empty()) return;
  std::sort(told.begin(), told.end(), [](const OwnedRef& a, const OwnedRef& b) {
    return std::less<PyObject*>()(a.get(), b.get());
  });
  const auto same = [](const OwnedRef& a, const OwnedRef& b) { return a.get() == b.get(); };
  told.erase(std::unique(told.begin(), told.end(), same), told.end());
  for (PyObject* array : moved_arrays_) sent_.moved_arrays.emplace_back(Py_NewRef(array));
  root.reset();
  // From here to the publication no Python code runs.
  for (OwnedRef& object : told) {
    const shm::Segment* segment = segment_in(object.get());
    workers::SegmentName name{};
    if (!is_uniquely_referenced(object.get()) || !segment->is_created_here() ||
        segment->name().size() >= sizeof name.text) {
      continue;
    }
    segment->name().copy(name.text, sizeof name.text - 1);
    writer_.put(name);
    sent_.transferred.push_back(std::move(object));
  }
  std::erase_if(told, [](const OwnedRef& object) { return !object; });
  writer_.patch(0, transferred());
}

void Encoder::write_strides(PyArrayObject* array) {
  writer_.put_bytes(PyArray_STRIDES(array),
                    sizeof(npy_intp) * static_cast<std::size_t>(PyArray_NDIM(array)));
}

bool Encoder::write_inline(PyArrayObject* array) {
  write_shape(array);
  const auto bytes = static_cast<std::size_t>(PyArray_NBYTES(array));
  const NPY_ORDER order = order_of_copy(array);
  writer_.put(static_cast<std::uint8_t>(order == NPY_KEEPORDER      ? 2
                                        : order == NPY_FORTRANORDER ? 1
                                                                    : 0));
  if (order == NPY_KEEPORDER) write_strides(array);
  const std::size_t at = writer_.skip(bytes);
  return copy_array(array, writer_.data() + at);
}

bool Encoder::try_move(PyArrayObject* array, bool unique) {
  if (!may_move_ || !unique) return false;
  PyArrayObject* at = array;
  for (;;) {
    const auto* fields = reinterpret_cast<PyArrayObject_fields*>(at);
    if (fields->weakreflist != nullptr || PyArray_CHKFLAGS(at, NPY_ARRAY_WRITEBACKIFCOPY)) {
      return false;
    }
    PyObject* base = PyArray_BASE(at);
    if (base == nullptr) break;
    if (!PyArray_CheckExact(base) || !is_uniquely_referenced(base)) return false;
    at = as_array(base);
  }
  if (!PyArray_CHKFLAGS(at, NPY_ARRAY_OWNDATA) || !has_our_handler(at)) return false;
  if (!is_plain_dtype(PyArray_DESCR(at))) return false;
  const auto block = blocks_.find(PyArray_DATA(at));
  if (!block) return false;

  Span span;
  if (!array_span(PyArray_NDIM(array), PyArray_DIMS(array), PyArray_STRIDES(array),
                  PyArray_ITEMSIZE(array), span)) {
    return false;
  }
  const std::uint64_t first = blocks_.offset_of(PyArray_BYTES(array) + span.lowest);
  if (first < block->offset || first + span.bytes > block->offset + block->capacity) return false;
  // A small view would keep a large block from being used again.
  if (span.bytes * 2 < block->capacity &&
      span.bytes * 2 < static_cast<std::uint64_t>(PyArray_NBYTES(at))) {
    return false;
  }
  if (may_overlap(array)) return false;

  write_strides(array);
  writer_.put(static_cast<std::uint32_t>(moved_blocks_.size()));
  writer_.put(blocks_.offset_of(PyArray_DATA(array)));
  moved_blocks_.push_back({block->offset, block->capacity, block->id, 0});
  moved_arrays_.push_back(reinterpret_cast<PyObject*>(array));
  ++moved_;
  return true;
}

EncodeResult Encoder::copy_leaves() {
  if (copies_.empty()) return EncodeResult::kDone;
  std::uint64_t total = 0;
  for (const PendingCopy& copy : copies_) total += align_leaf(copy.bytes);
  requested_bytes_ = total;
  const auto destination = blocks_.allocate(total);
  if (!destination) return EncodeResult::kNoRoom;
  made_blocks_.push_back(destination->ref);
  // Blocks are numbered as they will be listed: moved ones first, then this one.
  const auto number = static_cast<std::uint32_t>(moved_blocks_.size());
  std::uint64_t at = 0;
  for (const PendingCopy& copy : copies_) {
    if (!copy.array) {
      std::memcpy(destination->data + at, copy.raw, copy.bytes);
    } else if (!copy_array(as_array(copy.array.get()), destination->data + at)) {
      blocks_.discard(destination->ref);
      made_blocks_.clear();
      return EncodeResult::kPythonError;
    }
    writer_.patch(copy.patch_at, number);
    writer_.patch(copy.patch_at + sizeof number, destination->ref.offset + at);
    at += align_leaf(copy.bytes);
  }
  return EncodeResult::kDone;
}

// Copies the array's items, in the order that order_of_copy() says. Plain dtypes: runs no Python
// code of the user, but may release the GIL.
bool Encoder::copy_array(PyArrayObject* array, std::byte* to) {
  if (PyArray_NBYTES(array) == 0) return true;
  if (PyArray_IS_C_CONTIGUOUS(array) || order_of_copy(array) != NPY_CORDER) {
    // Positive distances without gaps: the items fill one range that begins with the first.
    std::memcpy(to, PyArray_DATA(array), static_cast<std::size_t>(PyArray_NBYTES(array)));
    return true;
  }
  PyArray_Descr* dtype = PyArray_DESCR(array);
  Py_INCREF(dtype);
  OwnedRef target(PyArray_NewFromDescr(&PyArray_Type, dtype, PyArray_NDIM(array),
                                       PyArray_DIMS(array), nullptr, to, NPY_ARRAY_CARRAY,
                                       nullptr));
  if (!target) return false;
  // Within an envelope, items lie where they come to lie.
  PyArray_UpdateFlags(as_array(target.get()), NPY_ARRAY_ALIGNED);
  return PyArray_CopyInto(as_array(target.get()), array) == 0;
}

}  // namespace stook::bindings
