#include "bindings/copy_reasons.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <unordered_set>
#include <vector>

#include "bindings/array_layout.h"
#include "bindings/numpy_allocator.h"
#include "bindings/segment_object.h"
#include "bindings/shared_memory_array.h"

namespace stook::bindings {
namespace {

constexpr int kMaxDepth = 200;  // as the encoder

// One step down from a container: the key of a dict, or nullptr and a place.
struct Step {
  PyObject* key;
  Py_ssize_t place;
};

struct Finding {
  CopyReason reason = CopyReason::kMoved;
  PyObject* obstacle = nullptr;  // borrowed: what is in the way
};

bool is_plain(PyObject* object) {
  const PyTypeObject* type = Py_TYPE(object);
  return object == Py_None || type == &PyUnicode_Type || type == &PyLong_Type ||
         type == &PyFloat_Type || type == &PyBool_Type || type == &PyBytes_Type ||
         type == &PyComplex_Type;
}

template <std::size_t size>
void put_text(char (&to)[size], const std::string& text) {
  const std::size_t length = std::min(text.size(), size - 1);
  std::memcpy(to, text.data(), length);
  to[length] = 0;
}

class Walk {
 public:
  Walk(std::uint64_t min_shared_bytes, BlockSource& blocks, std::uint32_t moved,
       workers::ProfileCell& cell)
      : min_shared_bytes_(min_shared_bytes), blocks_(blocks), may_move_(moved), cell_(cell) {}

  // `holder`: the topmost container that has other references, if there is one.
  void walk(PyObject* object, PyObject* holder, int depth) {
    if (is_plain(object)) return;
    if (PyArray_CheckExact(object)) return leaf(object, holder);
    const PyTypeObject* type = Py_TYPE(object);
    const bool is_container = type == &PyDict_Type || type == &PyTuple_Type || type == &PyList_Type;
    if (!is_container || depth >= kMaxDepth) return other(object);
    if (holder == nullptr && !is_uniquely_referenced(object)) holder = object;
    if (!is_uniquely_referenced(object) && !seen_.insert(object).second) return;
    if (type == &PyDict_Type) {
      Py_ssize_t position = 0;
      PyObject* key = nullptr;
      PyObject* value = nullptr;
      while (PyDict_Next(object, &position, &key, &value) != 0) {
        steps_.push_back({key, 0});
        walk(value, holder, depth + 1);
        steps_.pop_back();
      }
      return;
    }
    for (Py_ssize_t i = 0; i < Py_SIZE(object); ++i) {
      steps_.push_back({nullptr, i});
      walk(type == &PyTuple_Type ? PyTuple_GET_ITEM(object, i) : PyList_GET_ITEM(object, i), holder,
           depth + 1);
      steps_.pop_back();
    }
  }

 private:
  void leaf(PyObject* object, PyObject* holder) {
    PyArrayObject* array = as_array(object);
    if (!is_uniquely_referenced(object) && !seen_.insert(object).second) return;
    Finding found;
    if (!is_plain_dtype(PyArray_DESCR(array))) {
      found = {CopyReason::kObjectDtype, reinterpret_cast<PyObject*>(PyArray_DESCR(array))};
    } else if (static_cast<std::uint64_t>(PyArray_NBYTES(array)) < min_shared_bytes_) {
      found.reason = CopyReason::kSmall;
    } else if (holder != nullptr) {
      found = {CopyReason::kSharedContainer, holder};
    } else if (!is_uniquely_referenced(object)) {
      found = {CopyReason::kSharedLeaf, object};
    } else {
      found = obstacle_of(array);
    }
    if (found.reason == CopyReason::kMoved) {
      // The encoder has not moved as many: it put the whole element into one pickle.
      if (may_move_ == 0) {
        found.reason = CopyReason::kPickledWhole;
      } else {
        --may_move_;
      }
    }
    note(found, static_cast<std::uint64_t>(PyArray_NBYTES(array)));
  }

  void other(PyObject* object) {
    if (PyArray_IsScalar(object, Generic)) return;
    if (!is_uniquely_referenced(object) && !seen_.insert(object).second) return;
    if (is_shared_memory_array(object)) {
      if (may_move_ != 0) --may_move_;
      return note({CopyReason::kSegment, object},
                  static_cast<std::uint64_t>(PyArray_NBYTES(as_array(object))));
    }
    if (!PyArray_Check(object)) return note({CopyReason::kPickled, object}, 0);
    const bool plain = is_plain_dtype(PyArray_DESCR(as_array(object)));
    note({plain ? CopyReason::kSubclass : CopyReason::kObjectDtype, object},
         static_cast<std::uint64_t>(PyArray_NBYTES(as_array(object))));
  }

  // As Encoder::try_move of an array that nobody but the element holds.
  Finding obstacle_of(PyArrayObject* array) {
    PyArrayObject* at = array;
    for (;;) {
      auto* object = reinterpret_cast<PyObject*>(at);
      if (reinterpret_cast<const PyArrayObject_fields*>(at)->weakreflist != nullptr) {
        return {CopyReason::kWeakReference, object};
      }
      if (PyArray_CHKFLAGS(at, NPY_ARRAY_WRITEBACKIFCOPY)) return {CopyReason::kWriteBack, object};
      PyObject* base = PyArray_BASE(at);
      if (base == nullptr) break;
      if (!PyArray_CheckExact(base)) return {CopyReason::kForeignBase, base};
      if (!is_uniquely_referenced(base)) return {CopyReason::kSharedBase, base};
      at = as_array(base);
    }
    auto* owner = reinterpret_cast<PyObject*>(at);
    if (!PyArray_CHKFLAGS(at, NPY_ARRAY_OWNDATA) || !has_our_handler(at)) {
      return {CopyReason::kNotFromArena, owner};
    }
    if (!is_plain_dtype(PyArray_DESCR(at))) return {CopyReason::kObjectDtype, owner};
    const auto block = blocks_.find(PyArray_DATA(at));
    if (!block) return {CopyReason::kNotFromArena, owner};
    Span span;
    if (!array_span(PyArray_NDIM(array), PyArray_DIMS(array), PyArray_STRIDES(array),
                    PyArray_ITEMSIZE(array), span)) {
      return {CopyReason::kOutside, owner};
    }
    const std::uint64_t first = blocks_.offset_of(PyArray_BYTES(array) + span.lowest);
    if (first < block->offset || first + span.bytes > block->offset + block->capacity) {
      return {CopyReason::kOutside, owner};
    }
    if (span.bytes * 2 < block->capacity &&
        span.bytes * 2 < static_cast<std::uint64_t>(PyArray_NBYTES(at))) {
      return {CopyReason::kSmallView, owner};
    }
    if (may_overlap(array)) return {CopyReason::kOverlap, owner};
    return {};
  }

  void note(const Finding& found, std::uint64_t bytes) {
    workers::ProfileReasonWords& words = cell_.reasons[static_cast<std::uint32_t>(found.reason)];
    workers::ProfileCell::add(words.leaves, 1);
    workers::ProfileCell::add(words.bytes, bytes);
    if (words.has_example.load(std::memory_order_relaxed) != 0) return;
    if (found.obstacle != nullptr) {
      words.references = static_cast<std::uint64_t>(Py_REFCNT(found.obstacle));
      put_text(words.type, Py_TYPE(found.obstacle)->tp_name);
    }
    put_text(words.path, path());
    // SYNC(profile.example): released here, acquired by whoever reads the texts.
    words.has_example.store(1, std::memory_order_release);
  }

  std::string path() const {
    std::string text;
    for (const Step& step : steps_) {
      if (step.key == nullptr) {
        text += "[" + std::to_string(step.place) + "]";
      } else if (PyUnicode_CheckExact(step.key)) {
        const char* name = PyUnicode_AsUTF8(step.key);
        if (name == nullptr) PyErr_Clear();  // a lone surrogate
        text += "['" + std::string(name != nullptr ? name : "?") + "']";
      } else if (PyLong_CheckExact(step.key)) {
        int overflow = 0;
        text += "[" + std::to_string(PyLong_AsLongLongAndOverflow(step.key, &overflow)) + "]";
      } else {
        text += std::string("[<") + Py_TYPE(step.key)->tp_name + ">]";
      }
    }
    return text;
  }

  std::uint64_t min_shared_bytes_;
  BlockSource& blocks_;
  std::uint32_t may_move_;  // leaves that the encoder has moved, and that were not met yet
  workers::ProfileCell& cell_;
  std::vector<Step> steps_;
  std::unordered_set<PyObject*> seen_;  // with more than one reference
};

}  // namespace

void note_copy_reasons(PyObject* root, std::uint64_t min_shared_bytes, BlockSource& blocks,
                       std::uint32_t moved, workers::ProfileCell& cell) {
  Walk(min_shared_bytes, blocks, moved, cell).walk(root, nullptr, 0);
}

}  // namespace stook::bindings
