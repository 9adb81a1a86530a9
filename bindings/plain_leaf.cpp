#include "bindings/plain_leaf.h"

namespace stook::bindings {

namespace {

PyObject* read_string(EnvelopeReader& reader) {
  const int kind = reader.get<std::uint8_t>();
  const auto length = reader.get<std::uint64_t>();
  if (kind > 4 || length > reader.left()) return nullptr;
  const std::byte* characters =
      reader.take(length * static_cast<std::uint64_t>(kind == 0 ? 1 : kind));
  if (characters == nullptr) return nullptr;
  if (kind != 0) {
    return PyUnicode_FromKindAndData(kind, characters, static_cast<Py_ssize_t>(length));
  }
  PyObject* text = PyUnicode_New(static_cast<Py_ssize_t>(length), 127);
  if (text != nullptr && length != 0) std::memcpy(PyUnicode_DATA(text), characters, length);
  return text;
}

}  // namespace

PyObject* read_plain(EnvelopeReader& reader, Tag tag) {
  switch (tag) {
    case Tag::kNone:
      Py_RETURN_NONE;
    case Tag::kTrue:
      Py_RETURN_TRUE;
    case Tag::kFalse:
      Py_RETURN_FALSE;
    case Tag::kInt:
      return PyLong_FromLongLong(reader.get<std::int64_t>());
    case Tag::kFloat:
      return PyFloat_FromDouble(reader.get<double>());
    case Tag::kComplex: {
      const auto real = reader.get<double>();
      return PyComplex_FromDoubles(real, reader.get<double>());
    }
    case Tag::kStr:
      return read_string(reader);
    case Tag::kBytes: {
      const auto length = reader.get<std::uint64_t>();
      const std::byte* bytes = reader.take(length);
      if (bytes == nullptr) return nullptr;
      return PyBytes_FromStringAndSize(reinterpret_cast<const char*>(bytes),
                                       static_cast<Py_ssize_t>(length));
    }
    default:
      return nullptr;
  }
}

}  // namespace stook::bindings
