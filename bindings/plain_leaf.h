// Leaves that are nothing but their value: numbers, strings, bytes, None.
#pragma once

#include <cstdint>
#include <cstring>

#include "bindings/envelope.h"
#include "bindings/python_api.h"

namespace stook::bindings {

// The last of their tags; see Tag.
inline constexpr Tag kLastPlainTag = Tag::kBytes;

// Writes the tree of such a leaf. False, and nothing is written, for everything else, integers of
// more than 64 bits among it. Requires GIL; runs no Python code.
inline bool write_plain(EnvelopeWriter& writer, PyObject* object) {
  const auto put = [&writer](Tag tag, auto value) {
    std::byte bytes[sizeof tag + sizeof value];
    std::memcpy(bytes, &tag, sizeof tag);
    std::memcpy(bytes + sizeof tag, &value, sizeof value);
    writer.put_bytes(bytes, sizeof bytes);
  };
  if (object == Py_None) {
    writer.put(Tag::kNone);
    return true;
  }
  PyTypeObject* type = Py_TYPE(object);
  if (type == &PyUnicode_Type) {
    writer.put(Tag::kStr);
    const auto length = static_cast<std::uint64_t>(PyUnicode_GET_LENGTH(object));
    const int kind = PyUnicode_KIND(object);
    const bool ascii = PyUnicode_IS_ASCII(object) != 0;
    writer.put(static_cast<std::uint8_t>(ascii ? 0 : kind));
    writer.put(length);
    writer.put_bytes(PyUnicode_DATA(object), length * static_cast<std::uint64_t>(kind));
    return true;
  }
  if (type == &PyLong_Type) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0) return false;
    put(Tag::kInt, static_cast<std::int64_t>(value));
    return true;
  }
  if (type == &PyFloat_Type) {
    put(Tag::kFloat, PyFloat_AS_DOUBLE(object));
    return true;
  }
  if (type == &PyBool_Type) {
    writer.put(object == Py_True ? Tag::kTrue : Tag::kFalse);
    return true;
  }
  if (type == &PyBytes_Type) {
    writer.put(Tag::kBytes);
    writer.put(static_cast<std::uint64_t>(PyBytes_GET_SIZE(object)));
    writer.put_bytes(PyBytes_AS_STRING(object), static_cast<std::size_t>(PyBytes_GET_SIZE(object)));
    return true;
  }
  if (type == &PyComplex_Type) {
    writer.put(Tag::kComplex);
    writer.put(PyComplex_RealAsDouble(object));
    writer.put(PyComplex_ImagAsDouble(object));
    return true;
  }
  return false;
}

// Reads what is behind such a tag. nullptr with a Python error set, or without one if it cannot be
// read. Numbers may lie beyond the end: the reader says so (ok()).
PyObject* read_plain(EnvelopeReader& reader, Tag tag);

}  // namespace stook::bindings
