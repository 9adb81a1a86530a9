#include "bindings/decoder.h"

#include "bindings/array_handle.h"
#include "bindings/array_layout.h"
#include "bindings/errors.h"
#include "bindings/lease.h"
#include "bindings/plain_leaf.h"
#include "bindings/segment_object.h"
#include "bindings/signal_handlers.h"
#include "shm/error.h"
#include "shm/segment.h"

namespace stook::bindings {

namespace {
constexpr std::size_t kMaxDtypes = 1024;
constexpr int kMaxDepth = 1000;

PyObject* malformed() {
  PyErr_SetString(PyExc_RuntimeError,
                  "stook: a worker sent an element that cannot be read; its memory is damaged");
  return nullptr;
}
}  // namespace

// One pass over one envelope.
class Decoder::Reading {
 public:
  Reading(Decoder& decoder, std::span<const std::byte> payload, const std::byte* memory,
          const std::vector<Source>& blocks, OwnedRef* interrupt = nullptr)
      : decoder_(decoder),
        reader_(payload.data(), payload.size()),
        memory_(memory),
        blocks_(blocks),
        interrupt_(interrupt) {}

  ~Reading() {
    for (PyObject* object : memo_) Py_DECREF(object);
  }

  PyObject* element() {
    if (!take_over_segments()) return nullptr;
    if (reader_.get<std::uint8_t>() != 0 && !read_pickle()) return nullptr;
    PyObject* result = tree(0);
    if (result != nullptr && !reader_.ok()) {
      Py_DECREF(result);
      return malformed();
    }
    return result;
  }

  bool plain(PyObject* list, Py_ssize_t at, Py_ssize_t count) {
    for (Py_ssize_t i = at; i < at + count; ++i) {
      const Tag tag = reader_.get<Tag>();
      PyObject* item = tag <= kLastPlainTag ? tree_of(tag, 0) : malformed();
      if (item == nullptr) return false;
      PyList_SET_ITEM(list, i, item);
    }
    return reader_.ok() || malformed() != nullptr;
  }

 private:
  PyObject* tree(int depth) {
    if (depth > kMaxDepth) return malformed();
    const Tag tag = reader_.get<Tag>();
    if (tag == Tag::kMemoized) {
      remember_ = true;
      return tree_of(reader_.get<Tag>(), depth);
    }
    return tree_of(tag, depth);
  }

  // Containers and arrays may be referred to later, also from within themselves.
  void note(PyObject* object) {
    if (!remember_) return;
    remember_ = false;
    Py_INCREF(object);
    memo_.push_back(object);
  }

  PyObject* tree_of(Tag tag, int depth) {
    if (!reader_.ok()) return malformed();
    if (tag <= kLastPlainTag) {
      PyObject* leaf = read_plain(reader_, tag);
      return leaf != nullptr || PyErr_Occurred() != nullptr ? leaf : malformed();
    }
    switch (tag) {
      case Tag::kTuple:
      case Tag::kList:
        return sequence(tag == Tag::kTuple, depth);
      case Tag::kDict:
        return dict(depth);
      case Tag::kScalar:
        return scalar();
      case Tag::kInlineArray:
        return inline_array();
      case Tag::kBlockArray:
        return block_array();
      case Tag::kSegmentArray:
        return segment_array();
      case Tag::kPickled: {
        auto index = reader_.get<std::uint32_t>();
        if (index == kWholePickle) index = 0;
        if (!pickled_ || index >= static_cast<std::size_t>(PyList_GET_SIZE(pickled_.get()))) {
          return malformed();
        }
        PyObject* object = PyList_GET_ITEM(pickled_.get(), index);
        Py_INCREF(object);
        return object;
      }
      case Tag::kReference: {
        const auto index = reader_.get<std::uint32_t>();
        if (index >= memo_.size()) return malformed();
        Py_INCREF(memo_[index]);
        return memo_[index];
      }
      default:
        break;
    }
    return malformed();
  }

  PyObject* sequence(bool is_tuple, int depth) {
    const auto length = reader_.get<std::uint64_t>();
    // Every item takes at least its tag: a length beyond that is not one.
    if (!reader_.ok() || length > reader_.left()) return malformed();
    const auto count = static_cast<Py_ssize_t>(length);
    OwnedRef result(is_tuple ? PyTuple_New(count) : PyList_New(count));
    if (!result) return nullptr;
    note(result.get());
    for (Py_ssize_t i = 0; i < count; ++i) {
      PyObject* item = tree(depth + 1);
      if (item == nullptr) return nullptr;
      if (is_tuple) {
        PyTuple_SET_ITEM(result.get(), i, item);
      } else {
        PyList_SET_ITEM(result.get(), i, item);
      }
    }
    return result.release();
  }

  PyObject* dict(int depth) {
    const auto length = reader_.get<std::uint64_t>();
    if (!reader_.ok() || length > reader_.left()) return malformed();
    OwnedRef result(PyDict_New());
    if (!result) return nullptr;
    note(result.get());
    for (std::uint64_t i = 0; i < length; ++i) {
      const OwnedRef key(tree(depth + 1));
      if (!key) return nullptr;
      const OwnedRef value(tree(depth + 1));
      if (!value || PyDict_SetItem(result.get(), key.get(), value.get()) != 0) return nullptr;
    }
    return result.release();
  }

  // New reference, or nullptr with an error set.
  PyArray_Descr* dtype() {
    const auto tag = reader_.get<DtypeTag>();
    if (tag == DtypeTag::kPickled) return pickled_dtype();
    const int type_num = reader_.get<std::uint8_t>();
    const bool swapped = reader_.get<std::uint8_t>() != 0;
    const std::int64_t item_bytes = tag == DtypeTag::kFlexible ? reader_.get<std::int64_t>() : 0;
    if (!reader_.ok() || type_num > NPY_HALF || type_num == NPY_OBJECT || item_bytes < 0 ||
        item_bytes > INT_MAX) {
      malformed();
      return nullptr;
    }
    PyArray_Descr* plain = nullptr;
    if (tag == DtypeTag::kFlexible) {
      plain = PyArray_DescrNewFromType(type_num);
      if (plain != nullptr) PyDataType_SET_ELSIZE(plain, static_cast<npy_intp>(item_bytes));
    } else {
      plain = PyArray_DescrFromType(type_num);
    }
    if (plain == nullptr || !swapped) return plain;
    PyArray_Descr* other = PyArray_DescrNewByteorder(plain, NPY_OPPBYTE);
    Py_DECREF(plain);
    return other;
  }

  PyArray_Descr* pickled_dtype() {
    const auto length = reader_.get<std::uint32_t>();
    const std::byte* bytes = reader_.take(length);
    if (bytes == nullptr) {
      malformed();
      return nullptr;
    }
    std::string key(reinterpret_cast<const char*>(bytes), length);
    const auto known = decoder_.dtypes_.find(key);
    if (known != decoder_.dtypes_.end()) {
      Py_INCREF(known->second);
      return known->second;
    }
    const OwnedRef pickled(
        PyBytes_FromStringAndSize(key.data(), static_cast<Py_ssize_t>(key.size())));
    if (!pickled) return nullptr;
    OwnedRef made(
        unpickle([&] { return PyObject_CallOneArg(decoder_.unpickle_dtype_, pickled.get()); }));
    if (!made) return nullptr;
    auto* descr = reinterpret_cast<PyArray_Descr*>(made.get());
    if (!PyArray_DescrCheck(made.get()) || !is_plain_dtype(descr)) {
      malformed();
      return nullptr;
    }
    // The names of fields can be exchanged in a dtype that exists, so every array gets its own.
    if (PyDataType_NAMES(descr) == nullptr) {
      if (decoder_.dtypes_.size() >= kMaxDtypes) {
        for (auto& [text, old] : decoder_.dtypes_) Py_DECREF(old);
        decoder_.dtypes_.clear();
      }
      Py_INCREF(descr);
      decoder_.dtypes_.emplace(std::move(key), descr);
    }
    return reinterpret_cast<PyArray_Descr*>(made.release());
  }

  PyObject* scalar() {
    PyArray_Descr* descr = dtype();
    if (descr == nullptr) return nullptr;
    const OwnedRef owner(reinterpret_cast<PyObject*>(descr));
    alignas(16) std::byte value[sizeof(npy_clongdouble)];
    const auto size = static_cast<std::size_t>(PyDataType_ELSIZE(descr));
    const std::byte* bytes = size <= sizeof value ? reader_.take(size) : nullptr;
    if (bytes == nullptr) return malformed();
    std::memcpy(value, bytes, size);
    return PyArray_Scalar(value, descr, nullptr);
  }

  bool shape(int& dimensions, npy_intp* lengths) {
    dimensions = reader_.get<std::uint8_t>();
    if (dimensions > NPY_MAXDIMS) return false;
    const std::byte* bytes = reader_.take(sizeof(npy_intp) * static_cast<std::size_t>(dimensions));
    if (bytes == nullptr) return false;
    std::memcpy(lengths, bytes, sizeof(npy_intp) * static_cast<std::size_t>(dimensions));
    for (int i = 0; i < dimensions; ++i) {
      if (lengths[i] < 0) return false;
    }
    return true;
  }

  PyObject* inline_array() {
    const bool remember = std::exchange(remember_, false);
    PyArray_Descr* descr = dtype();
    if (descr == nullptr) return nullptr;
    OwnedRef owner(reinterpret_cast<PyObject*>(descr));
    int dimensions = 0;
    npy_intp lengths[NPY_MAXDIMS];
    if (!shape(dimensions, lengths)) return malformed();
    const int order = reader_.get<std::uint8_t>();
    npy_intp strides[NPY_MAXDIMS];
    if (order == 2 && !read_strides(dimensions, strides)) return malformed();
    // Held against what is left before anything is allocated.
    std::uint64_t bytes = static_cast<std::uint64_t>(PyDataType_ELSIZE(descr));
    bool empty = bytes == 0;
    for (int i = 0; i < dimensions; ++i) {
      empty |= lengths[i] == 0;
      if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(lengths[i]), &bytes)) {
        return malformed();
      }
    }
    const std::byte* data = reader_.take(empty ? 0 : bytes);
    if (data == nullptr) return malformed();
    if (order == 2 && !empty) {
      // The items fill one range that begins with the first.
      Span span;
      if (!array_span(dimensions, lengths, strides, PyDataType_ELSIZE(descr), span) ||
          span.lowest != 0 || span.bytes != bytes) {
        return malformed();
      }
    }
    OwnedRef array(PyArray_NewFromDescr(
        &PyArray_Type, reinterpret_cast<PyArray_Descr*>(owner.release()), dimensions, lengths,
        order == 2 ? strides : nullptr, nullptr, order == 1 ? NPY_ARRAY_F_CONTIGUOUS : 0, nullptr));
    if (!array) return nullptr;
    if (!empty) std::memcpy(PyArray_DATA(as_array(array.get())), data, bytes);
    remember_ = remember;
    note(array.get());
    return array.release();
  }

  PyObject* block_array() {
    const bool remember = std::exchange(remember_, false);
    PyArray_Descr* descr = dtype();
    if (descr == nullptr) return nullptr;
    OwnedRef owner(reinterpret_cast<PyObject*>(descr));
    int dimensions = 0;
    npy_intp lengths[NPY_MAXDIMS];
    npy_intp strides[NPY_MAXDIMS];
    if (!shape(dimensions, lengths) || !read_strides(dimensions, strides)) return malformed();
    const auto number = reader_.get<std::uint32_t>();
    const auto offset = reader_.get<std::uint64_t>();
    Span span;
    if (!reader_.ok() || number >= blocks_.size() ||
        !array_span(dimensions, lengths, strides, PyDataType_ELSIZE(descr), span)) {
      return malformed();
    }
    const Source& block = blocks_[number];
    const std::uint64_t first = offset + static_cast<std::uint64_t>(span.lowest);
    if (first < block.offset || first > block.offset + block.bytes ||
        span.bytes > block.offset + block.bytes - first) {
      return malformed();
    }
    OwnedRef array(PyArray_NewFromDescr(
        &PyArray_Type, reinterpret_cast<PyArray_Descr*>(owner.release()), dimensions, lengths,
        strides, const_cast<std::byte*>(memory_) + offset, NPY_ARRAY_WRITEABLE, nullptr));
    if (!array) return nullptr;
    if (block.lease != nullptr) {
      Py_INCREF(block.lease);
      if (PyArray_SetBaseObject(as_array(array.get()), block.lease) != 0) return nullptr;
    } else {
      array.reset(PyArray_NewCopy(as_array(array.get()), order_of_copy(as_array(array.get()))));
      if (!array) return nullptr;
    }
    remember_ = remember;
    note(array.get());
    return array.release();
  }

  PyObject* segment_array() {
    const bool remember = std::exchange(remember_, false);
    PyArray_Descr* descr = dtype();
    if (descr == nullptr) return nullptr;
    OwnedRef owner(reinterpret_cast<PyObject*>(descr));
    int dimensions = 0;
    npy_intp lengths[NPY_MAXDIMS];
    npy_intp strides[NPY_MAXDIMS];
    if (!shape(dimensions, lengths) || !read_strides(dimensions, strides)) return malformed();
    const auto offset = reader_.get<std::uint64_t>();
    const auto length = reader_.get<std::uint64_t>();
    const std::byte* text = reader_.take(length);
    if (text == nullptr) return malformed();
    const std::string name(reinterpret_cast<const char*>(text), length);
    OwnedRef array(attach_array(name.c_str(), reinterpret_cast<PyArray_Descr*>(owner.release()),
                                dimensions, lengths, strides, offset));
    if (!array) return nullptr;
    remember_ = remember;
    note(array.get());
    return array.release();
  }

  bool read_strides(int dimensions, npy_intp* strides) {
    const std::size_t bytes = sizeof(npy_intp) * static_cast<std::size_t>(dimensions);
    const std::byte* at = reader_.take(bytes);
    if (at == nullptr) return false;
    std::memcpy(strides, at, bytes);
    return true;
  }

  // What goes with the element is this process's from here on, also if the element cannot be made.
  bool take_over_segments() {
    const auto count = reader_.get<std::uint32_t>();
    if (count == 0) return reader_.ok() || malformed() != nullptr;
    const std::byte* at = reader_.take_last(count * std::uint64_t{sizeof(workers::SegmentName)});
    if (at == nullptr) return malformed() != nullptr;
    bool failed = false;
    for (std::uint32_t i = 0; i < count; ++i, at += sizeof(workers::SegmentName)) {
      workers::SegmentName name;
      std::memcpy(&name, at, sizeof name);
      name.text[sizeof name.text - 1] = '\0';
      if (!failed && take_over(name.text)) continue;
      failed = true;
      try {
        shm::unlink_segment(name.text);
      } catch (const std::exception&) {
        // Swept with its owner, once that has ended.
      }
    }
    return !failed;
  }

  bool take_over(const char* name) {
    segments_.emplace_back(attach_segment_object(name));
    if (!segments_.back()) return false;
    try {
      segment_in(segments_.back().get())->unlink_on_release();
      return true;
    } catch (const shm::Error& error) {
      set_python_error(error);
      return false;
    }
  }

  bool read_pickle() {
    const auto count = reader_.get<std::uint32_t>();
    if (!reader_.ok() || count > reader_.left()) return malformed() != nullptr;
    const OwnedRef buffers(PyList_New(0));
    if (!buffers) return false;
    for (std::uint32_t i = 0; i < count; ++i) {
      const auto number = reader_.get<std::uint32_t>();
      const auto offset = reader_.get<std::uint64_t>();
      const auto bytes = reader_.get<std::uint64_t>();
      if (!reader_.ok() || number >= blocks_.size()) return malformed() != nullptr;
      const Source& block = blocks_[number];
      if (offset < block.offset || offset > block.offset + block.bytes ||
          bytes > block.offset + block.bytes - offset) {
        return malformed() != nullptr;
      }
      const OwnedRef buffer(make_buffer(block, offset, bytes));
      if (!buffer || PyList_Append(buffers.get(), buffer.get()) != 0) return false;
    }
    const auto size = reader_.get<std::uint64_t>();
    const std::byte* data = reader_.take(size);
    if (data == nullptr) return malformed() != nullptr;
    pickled_.reset(unpickle([&] {
      return PyObject_CallFunction(decoder_.unpickle_objects_, "y#O",
                                   reinterpret_cast<const char*>(data),
                                   static_cast<Py_ssize_t>(size), buffers.get());
    }));
    return pickled_ && PyList_Check(pickled_.get());
  }

  PyObject* make_buffer(const Source& block, std::uint64_t offset, std::uint64_t bytes) {
    if (block.lease == nullptr) {
      return PyByteArray_FromStringAndSize(reinterpret_cast<const char*>(memory_ + offset),
                                           static_cast<Py_ssize_t>(bytes));
    }
    const OwnedRef whole(PyMemoryView_FromObject(block.lease));
    if (!whole) return nullptr;
    const auto begin = static_cast<Py_ssize_t>(offset - block.offset);
    return PySequence_GetSlice(whole.get(), begin, begin + static_cast<Py_ssize_t>(bytes));
  }

  // Python code of the program's, which a signal handler may end.
  template <class Call>
  PyObject* unpickle(Call&& call) {
    PyObject* made = call();
    if (made != nullptr || interrupt_ == nullptr || !handler_raised()) return made;
    *interrupt_ = take_exception();
    return call();
  }

  Decoder& decoder_;
  EnvelopeReader reader_;
  const std::byte* memory_;
  const std::vector<Source>& blocks_;
  OwnedRef* interrupt_;
  OwnedRef pickled_;
  std::vector<OwnedRef> segments_;  // that came with the element
  std::vector<PyObject*> memo_;     // owned
  bool remember_ = false;
};

Decoder::Decoder(PyObject* unpickle_objects, PyObject* unpickle_dtype)
    : unpickle_objects_(unpickle_objects), unpickle_dtype_(unpickle_dtype) {}

Decoder::~Decoder() {
  for (auto& [text, dtype] : dtypes_) Py_DECREF(dtype);
}

PyObject* Decoder::decode_leased(std::span<const std::byte> payload,
                                 std::span<const workers::BlockRef> blocks, shm::LeasedArena* arena,
                                 bool copy_out, OwnedRef* interrupt) {
  std::vector<Source> sources;
  sources.reserve(blocks.size());
  PyObject* result = nullptr;
  bool failed = false;
  for (const workers::BlockRef& block : blocks) {
    PyObject* lease = nullptr;
    if (!copy_out) {
      lease = make_lease(arena, block.id, block.offset, block.bytes);
      failed |= lease == nullptr;
    }
    sources.push_back({block.offset, block.bytes, lease});
  }
  if (!failed) {
    const std::byte* memory = arena != nullptr ? arena->memory().data() : nullptr;
    result = Reading(*this, payload, memory, sources, interrupt).element();
  }
  // Leases that no array took go back here.
  for (const Source& source : sources) Py_XDECREF(source.lease);
  if (copy_out) {
    for (const workers::BlockRef& block : blocks) arena->release(block.id);
  }
  return result;
}

bool Decoder::decode_plain(std::span<const std::byte> payload, PyObject* list, Py_ssize_t at,
                           Py_ssize_t count) {
  const std::vector<Source> none;
  return Reading(*this, payload, nullptr, none).plain(list, at, count);
}

PyObject* Decoder::decode_copied(std::span<const std::byte> payload,
                                 std::span<const workers::BlockRef> blocks,
                                 const shm::Mapping& memory) {
  std::vector<Source> sources;
  for (const workers::BlockRef& block : blocks) {
    if (block.offset > memory.size() || block.bytes > memory.size() - block.offset) {
      return malformed();
    }
    sources.push_back({block.offset, block.bytes, nullptr});
  }
  return Reading(*this, payload, memory.data(), sources).element();
}

}  // namespace stook::bindings
