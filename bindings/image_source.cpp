#include "bindings/image_source.h"

#include <cstring>

namespace stook::bindings {
namespace {

namespace py = pybind11;

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

}  // namespace

ImageSource::ImageSource(py::handle object) : object_(py::reinterpret_borrow<py::object>(object)) {
  if (PyObject_CheckBuffer(object.ptr()) != 0) {
    export_buffer();
    return;
  }
  path_ = py::reinterpret_steal<py::object>(PyOS_FSPath(object.ptr()));
  if (!path_) {
    if (PyErr_ExceptionMatches(PyExc_TypeError) == 0) throw py::error_already_set();
    PyErr_Clear();
    throw py::type_error("source must be a path (str or os.PathLike) or a buffer of bytes, not " +
                         type_name());
  }
  PyObject* encoded = nullptr;
  if (PyUnicode_FSConverter(path_.ptr(), &encoded) == 0) throw py::error_already_set();
  encoded_path_ = py::reinterpret_steal<py::object>(encoded);
}

ImageSource::~ImageSource() {
  if (view_.obj != nullptr) PyBuffer_Release(&view_);
}

const char* ImageSource::path() const {
  return path_ ? PyBytes_AS_STRING(encoded_path_.ptr()) : nullptr;
}

std::span<const std::uint8_t> ImageSource::bytes() const {
  if (path_) return reader_.bytes();
  return {static_cast<const std::uint8_t*>(view_.buf), static_cast<std::size_t>(view_.len)};
}

py::object ImageSource::system_exception(int error) const {
  if (error == ENOMEM) return py::reinterpret_borrow<py::object>(PyExc_MemoryError)();
  return py::reinterpret_borrow<py::object>(PyExc_OSError)(error, std::strerror(error), path_);
}

py::object ImageSource::decode_exception(const decode::Error& error) const {
  if (error.code == ErrorCode::kOutOfMemory)
    return py::reinterpret_borrow<py::object>(PyExc_MemoryError)();
  const auto message = py::reinterpret_steal<py::object>(PyUnicode_FromFormat(
      "cannot decode %U: %s%s", name().ptr(), error.text.c_str(), advice(error.code)));
  if (!message) throw py::error_already_set();
  if (error.code == ErrorCode::kBadBox)
    return py::reinterpret_borrow<py::object>(PyExc_ValueError)(message);
  return py::module_::import("stook.errors").attr("DecodeError")(message);
}

void ImageSource::throw_error(const py::object& exception) {
  PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(exception.ptr())), exception.ptr());
  throw py::error_already_set();
}

std::string ImageSource::type_name() const { return Py_TYPE(object_.ptr())->tp_name; }

/// How messages call it: the path, or "<bytes of 123 bytes>".
py::object ImageSource::name() const {
  if (!path_) return py::str("<" + type_name() + " of " + std::to_string(view_.len) + " bytes>");
  PyObject* decoded = nullptr;
  if (PyUnicode_FSDecoder(path_.ptr(), &decoded) == 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(decoded);
}

void ImageSource::export_buffer() {
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

}  // namespace stook::bindings
