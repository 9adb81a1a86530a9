#include "workers/decode/npy.h"

#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "bindings/byte_input.h"
#include "bindings/python_api.h"
#include "bindings/register.h"
#include "bindings/source.h"
#include "workers/decode/zip.h"

namespace stook::bindings {
namespace {

namespace py = pybind11;

using decode::Error;
using decode::ErrorCode;
using decode::Literal;

// Read between two looks at the signal handlers.
constexpr std::size_t kPiece = std::size_t{64} << 20U;

/// A source, and where in it an array is read: errors name the member of an archive.
struct Place {
  Source& source;
  std::string member;  // in quotes; empty where the source is the array

  Error named(Error error) const {
    if (error && !member.empty()) error.text = "member " + member + ": " + error.text;
    return error;
  }

  template <typename Step>
  void check(Step step) const {
    source.check([this, &step] { return named(step()); });
  }

  [[noreturn]] void raise(ErrorCode code, const std::string& text) const {
    raise_decode_error(source, named({code, text}));
  }
};

py::object python_value(const Literal& literal) {
  switch (literal.kind) {
    case Literal::Kind::kText:
      return py::str(literal.text);
    case Literal::Kind::kNumber:
      return py::int_(literal.number);
    case Literal::Kind::kTruth:
      return py::bool_(literal.number != 0);
    default:
      break;
  }
  py::list items;
  for (const Literal& item : literal.items) items.append(python_value(item));
  if (literal.kind == Literal::Kind::kTuple) return py::tuple(items);
  return items;
}

/// Runs a step in which NumPy may find fault with what the header says.
template <typename Step>
py::object as_numpy_says(const Place& place, Step step) {
  try {
    return step();
  } catch (py::error_already_set& error) {
    const bool fault = error.matches(PyExc_ValueError) || error.matches(PyExc_TypeError) ||
                       error.matches(PyExc_OverflowError) || error.matches(PyExc_KeyError);
    if (!fault) throw;
    const std::string reason = py::str(error.value()).cast<std::string>();
    place.raise(ErrorCode::kBadHeader, "bad .npy header: NumPy says: " + reason);
  }
}

py::object dtype_of(const Place& place, const Literal& descr) {
  py::object dtype = as_numpy_says(place, [&descr]() -> py::object {
    const py::object value = python_value(descr);
    if (descr.kind == Literal::Kind::kList)
      return py::module_::import("numpy.lib.format").attr("descr_to_dtype")(value);
    PyArray_Descr* found = nullptr;
    if (PyArray_DescrConverter(value.ptr(), &found) != NPY_SUCCEED) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(found));
  });
  // The parser lets none through; what NumPy makes of a name is NumPy's, though.
  if (PyDataType_REFCHK(reinterpret_cast<PyArray_Descr*>(dtype.ptr())))
    place.raise(ErrorCode::kRefused, "holds Python objects, which are not read");
  return dtype;
}

/// The array that the stream holds, in memory of NumPy's current allocator.
py::object read_array(const Place& place, decode::ByteStream& stream) {
  decode::NpyReader reader(stream);
  decode::NpyHeader header;
  place.check([&] { return reader.open(&header); });
  const py::object dtype = dtype_of(place, header.descr);
  const auto item_size = PyDataType_ELSIZE(reinterpret_cast<PyArray_Descr*>(dtype.ptr()));
  std::uint64_t size = 0;
  decode::Error error = reader.data_size(header, static_cast<std::uint64_t>(item_size), &size);
  if (error) raise_decode_error(place.source, place.named(std::move(error)));

  const py::object made = as_numpy_says(place, [&]() -> py::object {
    py::tuple shape(header.shape.size());
    for (std::size_t i = 0; i < header.shape.size(); ++i) shape[i] = py::int_(header.shape[i]);
    const py::handle type(reinterpret_cast<PyObject*>(&PyArray_Type));
    return type(shape, dtype, py::none(), 0, py::none(), header.fortran_order ? "F" : "C");
  });
  PyArrayObject* const array = as_array(made.ptr());
  if (static_cast<std::uint64_t>(PyArray_NBYTES(array)) != size)
    place.raise(ErrorCode::kBadHeader, "bad .npy header: NumPy disagrees about the array's size");
  const std::span<std::uint8_t> items(static_cast<std::uint8_t*>(PyArray_DATA(array)), size);
  for (std::size_t at = 0; at < size; at += kPiece) {
    if (at != 0 && PyErr_CheckSignals() != 0) throw py::error_already_set();
    const auto piece = items.subspan(at, std::min<std::size_t>(kPiece, size - at));
    std::size_t done = 0;
    place.check([&] { return reader.read(piece, &done); });
  }
  return made;
}

py::object load_npy(const py::object& source_object) {
  Source source(source_object);
  ByteInput input(source);
  decode::PlainStream stream(input.bytes());
  return read_array({source, {}}, stream);
}

/// What the array of a member is called; null for a folder.
py::object key_of(const Source& source, const decode::ZipMember& member) {
  const auto size = static_cast<Py_ssize_t>(member.name.size());
  PyObject* const decoded =
      PyUnicode_Decode(member.name.data(), size, member.utf8 ? "utf-8" : "cp437", "strict");
  if (decoded == nullptr) {
    if (PyErr_ExceptionMatches(PyExc_UnicodeDecodeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    raise_decode_error(source, {ErrorCode::kBadHeader,
                                "the name " + decode::quoted(member.name) + " is not in UTF-8"});
  }
  const auto name = py::reinterpret_steal<py::str>(decoded);
  if (name.attr("endswith")("/").cast<bool>()) return {};
  return name.attr("removesuffix")(".npy");
}

/// Key and array of each member, or of those that `names`, a set or None, holds.
py::dict load_npz(const py::object& source_object, const py::object& names) {
  Source source(source_object);
  ByteInput input(source);
  decode::ZipDirectory directory(input.bytes());
  source.check([&] { return directory.open(); });
  py::dict arrays;
  for (const decode::ZipMember& member : directory.members()) {
    const py::object key = key_of(source, member);
    if (!key || !(names.is_none() || names.contains(key))) continue;
    const Place place{source, decode::quoted(member.name)};
    if (arrays.contains(key)) place.raise(ErrorCode::kBadHeader, "a second one of this name");
    decode::ZipStream stream(directory, member);
    place.check([&] { return stream.open(); });
    arrays[key] = read_array(place, stream);
    place.check([&] { return stream.finish(); });
  }
  return arrays;
}

}  // namespace

void register_npy(py::module_& module) {
  module.def("load_npy", &load_npy, py::arg("source"));
  module.def("load_npz", &load_npz, py::arg("source"), py::arg("names"));
}

}  // namespace stook::bindings
