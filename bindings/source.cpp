#include "bindings/source.h"

#include <cerrno>
#include <cstring>

namespace stook::bindings {
namespace {

using decode::ErrorCode;

const char* advice(ErrorCode code) {
  switch (code) {
    case ErrorCode::kTooManyPixels:
      return "; raise max_pixels if the source is trusted";
    case ErrorCode::kTruncated:
      return "; allow_truncated=True keeps what there is of an image";
    default:
      return "";
  }
}

[[noreturn]] void raise(const py::object& exception) {
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  throw py::error_already_set();
}

/// A place or a length in a file. Throws what Python is to raise where it is none.
std::uint64_t place_in_file(py::handle value, const char* what) {
  const auto index = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
  if (!index) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    throw py::type_error(std::string("the ") + what + " of source must be an int, not " +
                         Py_TYPE(value.ptr())->tp_name);
  }
  const long long number = PyLong_AsLongLong(index.ptr());
  const bool overflow = number == -1 && PyErr_Occurred() != nullptr;
  PyErr_Clear();
  if (overflow || number < 0) {
    throw py::value_error(std::string("the ") + what +
                          " of source must be from 0 to 2**63 - 1, not " +
                          py::str(index).cast<std::string>());
  }
  return static_cast<std::uint64_t>(number);
}

}  // namespace

Source::Source(py::handle object) : object_(py::reinterpret_borrow<py::object>(object)) {
  if (PyUnicode_Check(object.ptr()) != 0) {
    take_path(object);  // numpy.str_ exports its memory, too
  } else if (PyObject_CheckBuffer(object.ptr()) != 0) {
    export_buffer();
  } else if (PyTuple_Check(object.ptr()) != 0) {
    take_part(object);
  } else {
    take_path(object);
  }
}

Source::~Source() {
  if (view_.obj != nullptr) PyBuffer_Release(&view_);
}

void Source::take_part(py::handle tuple) {
  if (PyTuple_GET_SIZE(tuple.ptr()) != 3) {
    throw py::type_error("a part of a file as source is (path, offset, length); this tuple has " +
                         std::to_string(PyTuple_GET_SIZE(tuple.ptr())) + " items");
  }
  take_path(PyTuple_GET_ITEM(tuple.ptr(), 0));
  part_.offset = place_in_file(PyTuple_GET_ITEM(tuple.ptr(), 1), "offset");
  part_.length = place_in_file(PyTuple_GET_ITEM(tuple.ptr(), 2), "length");
  reader_.set_part(part_);
}

void Source::take_path(py::handle object) {
  path_ = py::reinterpret_steal<py::object>(PyOS_FSPath(object.ptr()));
  if (!path_) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    throw py::type_error(
        "source must be a path (str or os.PathLike), (path, offset, length) or a buffer of bytes, "
        "not " +
        std::string(Py_TYPE(object.ptr())->tp_name));
  }
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(path_.ptr(), &encoded) == 0) throw py::error_already_set();
  encoded_path_ = py::reinterpret_steal<py::object>(encoded);
}

void Source::export_buffer() {
  if (PyObject_GetBuffer(object_.ptr(), &view_, PyBUF_FULL_RO) != 0) throw py::error_already_set();
  const bool contiguous = PyBuffer_IsContiguous(&view_, 'C') != 0;
  if (contiguous && view_.itemsize == 1) return;
  const std::string format = view_.format != nullptr ? view_.format : "B";
  PyBuffer_Release(&view_);
  view_.obj = nullptr;
  if (!contiguous)
    throw py::value_error("source must be C-contiguous; this " + type_name() + " is not");
  throw py::type_error("source must be a buffer of bytes; this " + type_name() +
                       " has items of format '" + format + "'");
}

py::object Source::name() const {
  if (!path_) return py::str("<" + type_name() + " of " + std::to_string(view_.len) + " bytes>");
  PyObject* decoded = nullptr;
  if (PyUnicode_FSDecoder(path_.ptr(), &decoded) == 0) throw py::error_already_set();
  const auto path = py::reinterpret_steal<py::object>(decoded);
  if (!part_.length) return path;
  const std::uint64_t end = part_.offset + *part_.length;  // both are below 2**63
  const std::string part = "[" + std::to_string(part_.offset) + ":" + std::to_string(end) + "]";
  return path + py::str(part);
}

void Source::raise_short() const {
  raise_decode_error(*this, decode::outside_file(reader_.bytes().size(), *part_.length));
}

void Source::raise_unless_interrupted(int error) const {
  if (error != EINTR) raise(system_exception(error));
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

py::object Source::system_exception(int error) const {
  if (error == ENOMEM) return py::reinterpret_borrow<py::object>(PyExc_MemoryError)();
  const py::object path = path_ ? path_ : py::none();
  return py::reinterpret_borrow<py::object>(PyExc_OSError)(error, std::strerror(error), path);
}

py::object Source::decode_exception(const decode::Error& error) const {
  if (error.code == ErrorCode::kOutOfMemory)
    return py::reinterpret_borrow<py::object>(PyExc_MemoryError)();
  const auto message = py::reinterpret_steal<py::object>(PyUnicode_FromFormat(
      "cannot decode %U: %s%s", name().ptr(), error.text.c_str(), advice(error.code)));
  if (!message) throw py::error_already_set();
  if (error.code == ErrorCode::kBadBox)
    return py::reinterpret_borrow<py::object>(PyExc_ValueError)(message);
  return py::module_::import("stook.errors").attr("DecodeError")(message);
}

void raise_decode_error(const Source& source, const decode::Error& error) {
  raise(source.decode_exception(error));
}

}  // namespace stook::bindings
