#include "bindings/calls.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "bindings/plain_leaf.h"

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
  payload_.clear();
  payload_.skip(2 * sizeof(std::uint64_t));  // how many results, how many moved
  plain_at_ = plain_count_ = 0;
  moved_.clear();
  made_.clear();
  results_.clear();
  count_ = array_bytes_ = 0;
  moved_leaves_ = copied_leaves_ = 0;
  sent_ = {};
  names_.clear();
}

void BatchDraft::append_item(const ItemHeader& header, const void* bytes) {
  close_plain();
  payload_.put(header);
  payload_.put_bytes(bytes, header.bytes);
  payload_.pad_to(8);
}

bool BatchDraft::add_plain(PyObject* result) {
  if (plain_at_ == 0) {
    const std::size_t at = payload_.skip(sizeof(ItemHeader));
    if (!write_plain(payload_, result)) {
      payload_.truncate(at);
      return false;
    }
    plain_at_ = at;
  } else if (!write_plain(payload_, result)) {
    return false;
  }
  ++plain_count_;
  ++count_;
  return true;
}

void BatchDraft::close_plain() {
  if (plain_at_ == 0) return;
  ItemHeader header{};
  header.bytes = payload_.size() - plain_at_ - sizeof header;
  header.kind = kPlainItems;
  header.count = plain_count_;
  payload_.patch(plain_at_, header);
  payload_.pad_to(8);
  plain_at_ = plain_count_ = 0;
}

void BatchDraft::add(OwnedRef result, Encoder& encoder) {
  ItemHeader header{};
  header.bytes = encoder.payload().size();
  header.moved = static_cast<std::uint32_t>(encoder.moved_blocks().size());
  header.made = static_cast<std::uint32_t>(encoder.made_blocks().size());
  header.kind = kOneItem;
  header.count = 1;
  append_item(header, encoder.payload().data());
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
  header.kind = kErrorItem;
  header.count = 1;
  append_item(header, payload.data());
  ++count_;
}

void BatchDraft::fill(workers::ResultDraft& draft) {
  const std::uint64_t moved = moved_.size();
  close_plain();
  payload_.put_bytes(names_.data(), names_.size());
  payload_.patch(0, count_);
  payload_.patch(sizeof count_, moved);
  draft.kind = workers::ResultKind::kElement;
  draft.moved_blocks = moved_;
  draft.made_blocks = made_;
  draft.payload = payload_.bytes();
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
