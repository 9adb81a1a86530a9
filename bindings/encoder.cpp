#include "bindings/encoder.h"

#include <algorithm>
#include <cstring>

#include "bindings/numpy_allocator.h"

namespace stook::bindings {
namespace {

// Deeper trees go to pickle, which says what it thinks of them.
constexpr int kMaxDepth = 200;
constexpr std::uint64_t kLeafAlignment = 64;
constexpr std::size_t kMaxDtypes = 256;
// First of the type numbers that are neither NumPy's own nor old-style user types (StringDType).
constexpr int kFirstNewStyleType = 2048;

constexpr std::uint64_t align_leaf(std::uint64_t bytes) {
  return (bytes + kLeafAlignment - 1) / kLeafAlignment * kLeafAlignment;
}

bool is_number(int type_num) { return type_num >= NPY_BOOL && type_num <= NPY_CLONGDOUBLE; }

bool is_swapped(PyArray_Descr* dtype) { return dtype->byteorder == NPY_OPPBYTE; }

bool has_metadata(PyArray_Descr* dtype) {
  PyObject* metadata = PyDataType_METADATA(dtype);
  return metadata != nullptr && metadata != Py_None;
}

// The dimensions longer than 1, smallest distance between items first.
struct Steps {
  npy_intp distances[NPY_MAXDIMS];
  npy_intp lengths[NPY_MAXDIMS];
  int count = 0;
};

void sort_steps(PyArrayObject* array, Steps& steps) {
  for (int i = 0; i < PyArray_NDIM(array); ++i) {
    const npy_intp length = PyArray_DIM(array, i);
    if (length <= 1) continue;
    const npy_intp distance = std::abs(PyArray_STRIDE(array, i));
    int at = steps.count++;
    for (; at > 0 && steps.distances[at - 1] > distance; --at) {
      steps.distances[at] = steps.distances[at - 1];
      steps.lengths[at] = steps.lengths[at - 1];
    }
    steps.distances[at] = distance;
    steps.lengths[at] = length;
  }
}

// Items of the array that lie at the same place would be written through each other.
bool may_overlap(PyArrayObject* array) {
  Steps steps;
  sort_steps(array, steps);
  // Each dimension must step over everything that the smaller ones span.
  npy_intp spanned = PyArray_ITEMSIZE(array);
  for (int i = 0; i < steps.count; ++i) {
    if (steps.distances[i] < spanned) return true;
    spanned += steps.distances[i] * (steps.lengths[i] - 1);
  }
  return false;
}

// The tuples of field names within a dtype, its own first. They are what can be exchanged in a
// dtype that exists: `array.dtype.names = ...`.
void collect_names(PyArray_Descr* dtype, std::vector<PyObject*>& names) {
  while (PyDataType_SUBARRAY(dtype) != nullptr) dtype = PyDataType_SUBARRAY(dtype)->base;
  PyObject* own = PyDataType_NAMES(dtype);
  if (own == nullptr) return;
  names.push_back(own);
  PyObject* fields = PyDataType_FIELDS(dtype);
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(own); ++i) {
    PyObject* field = PyDict_GetItemWithError(fields, PyTuple_GET_ITEM(own, i));
    if (field == nullptr || !PyTuple_Check(field) || PyTuple_GET_SIZE(field) == 0) continue;
    PyObject* field_dtype = PyTuple_GET_ITEM(field, 0);
    if (PyArray_DescrCheck(field_dtype)) {
      collect_names(reinterpret_cast<PyArray_Descr*>(field_dtype), names);
    }
  }
}

}  // namespace

NPY_ORDER order_of_copy(PyArrayObject* array) {
  if (PyArray_IS_C_CONTIGUOUS(array)) return NPY_CORDER;
  if (PyArray_IS_F_CONTIGUOUS(array)) return NPY_FORTRANORDER;
  for (int i = 0; i < PyArray_NDIM(array); ++i) {
    if (PyArray_STRIDE(array, i) < 0 && PyArray_DIM(array, i) > 1) return NPY_CORDER;
  }
  Steps steps;
  sort_steps(array, steps);
  npy_intp spanned = PyArray_ITEMSIZE(array);
  for (int i = 0; i < steps.count; ++i) {
    if (steps.distances[i] != spanned) return NPY_CORDER;
    spanned *= steps.lengths[i];
  }
  return NPY_KEEPORDER;
}

bool is_plain_dtype(PyArray_Descr* dtype) {
  // NumPy makes 'S1' of 'S0' wherever it can.
  if (PyDataType_ELSIZE(dtype) == 0 && dtype->type_num != NPY_VOID) return false;
  // NPY_NEEDS_PYAPI is no hindrance: every structured dtype has it, and it is about casts.
  return !PyDataType_REFCHK(dtype) && dtype->type_num != NPY_OBJECT &&
         dtype->type_num < kFirstNewStyleType && !PyDataType_FLAGCHK(dtype, NPY_LIST_PICKLE);
}

bool array_span(int dimensions, const npy_intp* shape, const npy_intp* strides,
                std::int64_t item_bytes, Span& span) {
  std::int64_t lowest = 0;
  std::int64_t highest = item_bytes;
  for (int i = 0; i < dimensions; ++i) {
    if (shape[i] < 0) return false;
    if (shape[i] == 0) {
      span = {0, 0};
      return true;
    }
    std::int64_t reach = 0;
    if (__builtin_mul_overflow(static_cast<std::int64_t>(shape[i] - 1),
                               static_cast<std::int64_t>(strides[i]), &reach)) {
      return false;
    }
    std::int64_t& end = reach < 0 ? lowest : highest;
    if (__builtin_add_overflow(end, reach, &end)) return false;
  }
  std::int64_t bytes = 0;
  if (__builtin_sub_overflow(highest, lowest, &bytes)) return false;
  span = {lowest, static_cast<std::uint64_t>(bytes)};
  return true;
}

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
  // Only between elements: an element may have more dtypes than are kept.
  if (dtypes_.size() >= kMaxDtypes) dtypes_.clear();
  bool pickled = false;
  for (;;) {
    reset();
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
      return EncodeResult::kPythonError;
    }
  }
  const EncodeResult result = copy_leaves();
  copies_.clear();
  drop_pickle();
  return result;
}

// ------------------------------------------------------------------ the walk: no Python code

Encoder::Walk Encoder::walk(PyObject* object, bool unique, int depth) {
  if (object == Py_None) {
    writer_.put(Tag::kNone);
    return Walk::kDone;
  }
  if (PyArray_CheckExact(object)) return walk_array(as_array(object), unique);
  PyTypeObject* type = Py_TYPE(object);
  if (type == &PyUnicode_Type) {
    writer_.put(Tag::kStr);
    const auto length = static_cast<std::uint64_t>(PyUnicode_GET_LENGTH(object));
    const int kind = PyUnicode_KIND(object);
    const bool ascii = PyUnicode_IS_ASCII(object) != 0;
    writer_.put(static_cast<std::uint8_t>(ascii ? 0 : kind));
    writer_.put(length);
    writer_.put_bytes(PyUnicode_DATA(object), length * static_cast<std::uint64_t>(kind));
    return Walk::kDone;
  }
  if (type == &PyLong_Type) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return write_pickled(object);
    writer_.put(Tag::kInt);
    writer_.put(static_cast<std::int64_t>(value));
    return Walk::kDone;
  }
  if (type == &PyFloat_Type) {
    writer_.put(Tag::kFloat);
    writer_.put(PyFloat_AS_DOUBLE(object));
    return Walk::kDone;
  }
  if (type == &PyBool_Type) {
    writer_.put(object == Py_True ? Tag::kTrue : Tag::kFalse);
    return Walk::kDone;
  }
  if (type == &PyBytes_Type) {
    writer_.put(Tag::kBytes);
    writer_.put(static_cast<std::uint64_t>(PyBytes_GET_SIZE(object)));
    writer_.put_bytes(PyBytes_AS_STRING(object),
                      static_cast<std::size_t>(PyBytes_GET_SIZE(object)));
    return Walk::kDone;
  }
  if (type == &PyComplex_Type) {
    writer_.put(Tag::kComplex);
    writer_.put(PyComplex_RealAsDouble(object));
    writer_.put(PyComplex_ImagAsDouble(object));
    return Walk::kDone;
  }
  const bool is_container = type == &PyDict_Type || type == &PyTuple_Type || type == &PyList_Type;
  if (!is_container) {
    if (PyArray_IsScalar(object, Generic)) return walk_scalar(object);
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

// ------------------------------------------------------------------ prepare steps: Python code

bool Encoder::prepare_dtypes() {
  for (OwnedRef& wanted : wanted_dtypes_) {
    auto* dtype = reinterpret_cast<PyArray_Descr*>(wanted.get());
    if (find_pickled(dtype) != nullptr) continue;
    PickledDtype made;
    names_.clear();
    collect_names(dtype, names_);
    for (PyObject* names : names_) {
      Py_INCREF(names);
      made.names.emplace_back(names);
    }
    const OwnedRef bytes(PyObject_CallOneArg(pickle_dtype_, wanted.get()));
    if (!bytes || !PyBytes_Check(bytes.get())) return false;
    made.bytes.assign(PyBytes_AS_STRING(bytes.get()),
                      static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get())));
    made.dtype = std::move(wanted);
    dtypes_.insert_or_assign(dtype, std::move(made));
  }
  return true;
}

// Everything that the walk cannot write goes into one pickle, so that what these objects share
// stays shared. What they might share with the rest of the element shows as a second reference
// somewhere in the rest: then the whole element goes into one pickle.
bool Encoder::prepare_pickle(PyObject* root, bool whole) {
  OwnedRef others(PyList_New(0));
  if (!others) return false;
  bool has_shared = whole;
  if (!whole && !collect_others(root, others.get(), has_shared, 0)) return false;
  if (has_shared) {
    if (PyList_SetSlice(others.get(), 0, PY_SSIZE_T_MAX, nullptr) != 0) return false;
    if (PyList_Append(others.get(), root) != 0) return false;
    whole_ = true;
  }
  return pickle(others.get());
}

bool Encoder::collect_others(PyObject* object, PyObject* others, bool& has_shared, int depth) {
  PyTypeObject* type = Py_TYPE(object);
  if (object == Py_None || type == &PyUnicode_Type || type == &PyFloat_Type ||
      type == &PyBool_Type || type == &PyBytes_Type || type == &PyComplex_Type) {
    return true;
  }
  const bool is_container = type == &PyDict_Type || type == &PyTuple_Type || type == &PyList_Type;
  if (is_container && depth < kMaxDepth) {
    if (!is_uniquely_referenced(object)) {
      has_shared = true;
      return true;
    }
    if (type == &PyDict_Type) {
      Py_ssize_t position = 0;
      PyObject* key = nullptr;
      PyObject* value = nullptr;
      while (!has_shared && PyDict_Next(object, &position, &key, &value) != 0) {
        if (!collect_others(key, others, has_shared, depth + 1)) return false;
        if (!collect_others(value, others, has_shared, depth + 1)) return false;
      }
      return true;
    }
    for (Py_ssize_t i = 0; !has_shared && i < Py_SIZE(object); ++i) {
      PyObject* item =
          type == &PyTuple_Type ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i);
      if (!collect_others(item, others, has_shared, depth + 1)) return false;
    }
    return true;
  }
  if (PyArray_CheckExact(object) && is_plain_dtype(PyArray_DESCR(as_array(object)))) {
    if (!is_uniquely_referenced(object)) has_shared = true;
    return true;
  }
  if (type == &PyLong_Type) {
    int overflow = 0;
    PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow == 0) return true;
  }
  const auto index = static_cast<std::uint32_t>(PyList_GET_SIZE(others));
  if (!others_.try_emplace(object, index).second) return true;
  return PyList_Append(others, object) == 0;
}

bool Encoder::pickle(PyObject* list) {
  if (whole_) others_.clear();
  // The list keeps the objects alive, so that the addresses in `others_` stay theirs.
  Py_INCREF(list);
  others_list_.reset(list);
  OwnedRef result(PyObject_CallFunction(pickle_objects_, "OK", list,
                                        static_cast<unsigned long long>(min_shared_bytes_)));
  if (!result) return false;
  PyObject* data = nullptr;
  PyObject* buffers = nullptr;
  if (!PyArg_ParseTuple(result.get(), "SO!", &data, &PyList_Type, &buffers)) return false;
  Py_INCREF(data);
  pickle_bytes_.reset(data);
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(buffers); ++i) {
    Py_buffer view;
    if (PyObject_GetBuffer(PyList_GET_ITEM(buffers, i), &view, PyBUF_ANY_CONTIGUOUS) != 0) {
      return false;
    }
    pickle_buffers_.push_back(view);
  }
  return true;
}

void Encoder::write_pickle_section() {
  writer_.put(static_cast<std::uint8_t>(pickle_bytes_ ? 1 : 0));
  if (!pickle_bytes_) return;
  writer_.put(static_cast<std::uint32_t>(pickle_buffers_.size()));
  for (const Py_buffer& buffer : pickle_buffers_) {
    const std::size_t at = writer_.skip(sizeof(std::uint32_t) + sizeof(std::uint64_t));
    const auto bytes = static_cast<std::uint64_t>(buffer.len);
    writer_.put(bytes);
    copies_.push_back({at, OwnedRef(), buffer.buf, bytes});
    array_bytes_ += bytes;
    ++copied_;
  }
  const auto size = static_cast<std::uint64_t>(PyBytes_GET_SIZE(pickle_bytes_.get()));
  writer_.put(size);
  writer_.put_bytes(PyBytes_AS_STRING(pickle_bytes_.get()), size);
}

}  // namespace stook::bindings
