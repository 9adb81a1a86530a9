#include "bindings/calls.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "bindings/job_kinds.h"

namespace stook::bindings {

FunctionTable::~FunctionTable() {
  for (const auto& [number, entry] : entries_) Py_DECREF(entry.function);
}

OwnedRef FunctionTable::find(const workers::Job& job, const shm::Mapping& arguments) {
  const std::uint64_t number = job.epoch;
  const auto found = entries_.find(number);
  if (found != entries_.end()) {
    found->second.last_use = ++uses_;
    return OwnedRef(Py_NewRef(found->second.function));
  }
  const std::byte* definition = arguments.data() + job.position;
  std::uint64_t bytes = 0;
  std::memcpy(&bytes, definition, sizeof bytes);
  const OwnedRef pickled(PyBytes_FromStringAndSize(
      reinterpret_cast<const char*>(definition + sizeof bytes), static_cast<Py_ssize_t>(bytes)));
  if (!pickled) return OwnedRef();
  OwnedRef function(PyObject_CallOneArg(load_function_, pickled.get()));
  if (!function) return OwnedRef();
  if (entries_.size() >= kMost) drop_oldest();
  entries_[number] = {Py_NewRef(function.get()), ++uses_};
  return function;
}

void FunctionTable::drop_oldest() {
  const auto oldest = std::min_element(
      entries_.begin(), entries_.end(),
      [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
  const OwnedRef function(oldest->second.function);
  entries_.erase(oldest);
}

void BatchDraft::clear() {
  payload_.assign(2 * sizeof(std::uint64_t), std::byte{0});  // how many results, how many moved
  moved_.clear();
  made_.clear();
  results_.clear();
  count_ = array_bytes_ = 0;
  moved_leaves_ = copied_leaves_ = 0;
  sent_ = {};
  names_.clear();
}

void BatchDraft::append(const void* bytes, std::size_t size) {
  const auto* begin = static_cast<const std::byte*>(bytes);
  payload_.insert(payload_.end(), begin, begin + size);
}

void BatchDraft::add(OwnedRef result, Encoder& encoder) {
  ItemHeader header{};
  header.bytes = encoder.payload().size();
  header.moved = static_cast<std::uint32_t>(encoder.moved_blocks().size());
  header.made = static_cast<std::uint32_t>(encoder.made_blocks().size());
  append(&header, sizeof header);
  append(encoder.payload().data(), encoder.payload().size());
  payload_.resize((payload_.size() + 7) / 8 * 8);
  // Each result has its names at its own end; the manager wants all of them at the payload's.
  const std::size_t names = encoder.transferred() * sizeof(workers::SegmentName);
  names_.insert(names_.end(), encoder.payload().end() - static_cast<std::ptrdiff_t>(names),
                encoder.payload().end());
  sent_.append(encoder.take_sent());
  moved_.insert(moved_.end(), encoder.moved_blocks().begin(), encoder.moved_blocks().end());
  made_.insert(made_.end(), encoder.made_blocks().begin(), encoder.made_blocks().end());
  array_bytes_ += encoder.array_bytes();
  moved_leaves_ += encoder.moved();
  copied_leaves_ += encoder.copied();
  if (header.moved != 0 && result) results_.push_back(std::move(result));
  ++count_;
}

void BatchDraft::add_error(const std::string& payload) {
  ItemHeader header{};
  header.bytes = payload.size();
  header.is_error = 1;
  append(&header, sizeof header);
  append(payload.data(), payload.size());
  payload_.resize((payload_.size() + 7) / 8 * 8);
  ++count_;
}

void BatchDraft::fill(workers::ResultDraft& draft) {
  const std::uint64_t moved = moved_.size();
  append(names_.data(), names_.size());
  std::memcpy(payload_.data(), &count_, sizeof count_);
  std::memcpy(payload_.data() + sizeof count_, &moved, sizeof moved);
  draft.kind = workers::ResultKind::kElement;
  draft.moved_blocks = moved_;
  draft.made_blocks = made_;
  draft.payload = payload_;
  draft.array_bytes = array_bytes_;
  draft.moved = moved_leaves_;
  draft.copied = copied_leaves_;
  draft.segments = static_cast<std::uint32_t>(sent_.transferred.size());
}

OwnedRef call_with_pair(PyObject* function, OwnedRef pair) {
  if (!PyTuple_CheckExact(pair.get()) || PyTuple_GET_SIZE(pair.get()) != 2 ||
      !PyTuple_Check(PyTuple_GET_ITEM(pair.get(), 0))) {
    PyErr_SetString(PyExc_SystemError, "the payload of a call is no pair");
    return OwnedRef();
  }
  const OwnedRef positional(Py_NewRef(PyTuple_GET_ITEM(pair.get(), 0)));
  OwnedRef keywords;
  if (PyTuple_GET_ITEM(pair.get(), 1) != Py_None) {
    keywords.reset(Py_NewRef(PyTuple_GET_ITEM(pair.get(), 1)));
  }
  pair.reset();
  return OwnedRef(PyObject_Call(function, positional.get(), keywords.get()));
}

OwnedRef call_with_item(PyObject* function, OwnedRef item, bool star) {
  if (!star) return OwnedRef(PyObject_CallOneArg(function, item.get()));
  const OwnedRef positional(PySequence_Tuple(item.get()));
  item.reset();
  return OwnedRef(positional ? PyObject_CallObject(function, positional.get()) : nullptr);
}

}  // namespace stook::bindings
