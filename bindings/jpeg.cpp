#include "workers/decode/jpeg.h"

#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "bindings/python_api.h"
#include "bindings/register.h"
#include "workers/decode/file.h"

namespace stook::bindings {
namespace {

namespace py = pybind11;

using decode::ErrorCode;

/// What is to be decoded: a file, or the bytes of an object that stay exported as long as this
/// lives. Made, read from and destroyed with the GIL held.
class Source {
 public:
  explicit Source(py::handle object) : object_(py::reinterpret_borrow<py::object>(object)) {
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

  ~Source() {
    if (view_.obj != nullptr) PyBuffer_Release(&view_);
  }

  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  /// Reads up to `want` bytes and calls `use` with all that are there, both without the GIL.
  template <typename Use>
  void load(std::size_t want, Use use) {
    while (true) {
      int error = 0;
      {
        const WithoutGil without_gil;
        if (path_) error = reader_.read(PyBytes_AS_STRING(encoded_path_.ptr()), want);
        if (error == 0) {
          use(bytes());
          return;
        }
      }
      if (error == EINTR) {
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        continue;
      }
      if (error == ENOMEM) {
        PyErr_NoMemory();
      } else {
        errno = error;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path_.ptr());
      }
      throw py::error_already_set();
    }
  }

  /// Everything that was loaded.
  std::span<const std::uint8_t> bytes() const {
    if (path_) return reader_.bytes();
    return {static_cast<const std::uint8_t*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

  bool complete() const { return !path_ || reader_.at_end(); }

  /// How messages call it: the path, or "<bytes of 123 bytes>".
  py::object name() const {
    if (!path_) return py::str("<" + type_name() + " of " + std::to_string(view_.len) + " bytes>");
    PyObject* decoded = nullptr;
    if (PyUnicode_FSDecoder(path_.ptr(), &decoded) == 0) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(decoded);
  }

 private:
  std::string type_name() const { return Py_TYPE(object_.ptr())->tp_name; }

  void export_buffer() {
    if (PyObject_GetBuffer(object_.ptr(), &view_, PyBUF_FULL_RO) != 0)
      throw py::error_already_set();
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

  py::object object_;
  py::object path_;          // str or bytes; null for a buffer
  py::object encoded_path_;  // bytes for the system
  Py_buffer view_{};
  decode::FileReader reader_;
};

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

[[noreturn]] void raise_decode_error(const Source& source, const decode::Error& error) {
  if (error.code == ErrorCode::kOutOfMemory) {
    PyErr_NoMemory();
    throw py::error_already_set();
  }
  const py::object type = py::module_::import("stook.errors").attr("DecodeError");
  const auto message = py::reinterpret_steal<py::object>(PyUnicode_FromFormat(
      "cannot decode %U: %s%s", source.name().ptr(), error.text.c_str(), advice(error.code)));
  if (message) PyErr_SetObject(type.ptr(), message.ptr());
  throw py::error_already_set();
}

/// A result array: a new one, in memory of NumPy's current allocator, or the caller's own.
struct Target {
  py::object array;
  std::uint8_t* pixels = nullptr;
  std::ptrdiff_t row_stride = 0;
};

int rank_of(decode::PixelMode mode) { return mode == decode::PixelMode::kRgb ? 3 : 2; }

py::tuple shape_tuple(const npy_intp* dims, int rank) {
  py::tuple shape(static_cast<std::size_t>(rank));
  for (int i = 0; i < rank; ++i) shape[static_cast<std::size_t>(i)] = py::int_(dims[i]);
  return shape;
}

Target new_target(const npy_intp* dims, int rank) {
  Target target;
  target.array = py::reinterpret_steal<py::object>(PyArray_SimpleNew(rank, dims, NPY_UINT8));
  if (!target.array) throw py::error_already_set();
  auto* const array = reinterpret_cast<PyArrayObject*>(target.array.ptr());
  target.pixels = static_cast<std::uint8_t*>(PyArray_DATA(array));
  target.row_stride = PyArray_STRIDE(array, 0);
  return target;
}

/// What can be said about `out` before the image is known.
void require_writable_bytes(py::handle out) {
  if (PyArray_Check(out.ptr()) == 0) {
    throw py::type_error(std::string("out must be a numpy.ndarray of dtype uint8, not ") +
                         Py_TYPE(out.ptr())->tp_name);
  }
  auto* const array = reinterpret_cast<PyArrayObject*>(out.ptr());
  if (PyArray_TYPE(array) != NPY_UINT8) {
    const py::object dtype =
        py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(PyArray_DESCR(array)));
    throw py::type_error("out must have dtype uint8, not " + py::str(dtype).cast<std::string>());
  }
  if (PyArray_ISWRITEABLE(array) == 0)
    throw py::value_error("out must be writable; it is read-only");
}

Target existing_target(py::handle out, const npy_intp* dims, int rank,
                       std::span<const std::uint8_t> source) {
  auto* const array = reinterpret_cast<PyArrayObject*>(out.ptr());
  const npy_intp* const shape = PyArray_DIMS(array);
  bool same = PyArray_NDIM(array) == rank;
  for (int i = 0; same && i < rank; ++i) same = shape[i] == dims[i];
  if (!same) {
    throw py::value_error(
        "out has shape " + py::repr(shape_tuple(shape, PyArray_NDIM(array))).cast<std::string>() +
        ", the image needs " + py::repr(shape_tuple(dims, rank)).cast<std::string>());
  }
  // The stride of a dimension of length 1 means nothing, and NumPy leaves any value there.
  const npy_intp* const strides = PyArray_STRIDES(array);
  const npy_intp pixel = rank == 3 ? dims[2] : 1;
  const npy_intp row = dims[1] * pixel;
  const bool packed = (dims[1] == 1 || strides[1] == pixel) && (rank == 2 || strides[2] == 1);
  const bool apart = dims[0] == 1 || strides[0] >= row || strides[0] <= -row;
  if (!packed || !apart) {
    throw py::value_error(
        "out must have contiguous rows that do not overlap: strides (row stride, " +
        std::string(rank == 3 ? "3, 1" : "1") + "), not " +
        py::repr(shape_tuple(strides, rank)).cast<std::string>());
  }
  Target target{py::reinterpret_borrow<py::object>(out),
                static_cast<std::uint8_t*>(PyArray_DATA(array)), dims[0] == 1 ? row : strides[0]};
  const std::uint8_t* low = target.pixels;
  const std::uint8_t* high = target.pixels + (dims[0] - 1) * target.row_stride;
  if (target.row_stride < 0) std::swap(low, high);
  high += row;
  const std::less<> before;
  if (!source.empty() && before(low, source.data() + source.size()) &&
      before(source.data(), high)) {
    throw py::value_error("out and source share memory");
  }
  return target;
}

py::object decode_jpeg(const py::object& source_object, const py::object& out, bool gray,
                       std::uint64_t max_pixels, bool allow_truncated, bool apply_orientation) {
  if (!out.is_none()) require_writable_bytes(out);
  decode::JpegOptions options;
  options.mode = gray ? decode::PixelMode::kGray : decode::PixelMode::kRgb;
  options.max_pixels = max_pixels;
  options.allow_truncated = allow_truncated;
  options.apply_orientation = apply_orientation;

  Source source(source_object);
  std::optional<decode::JpegDecoder> decoder;
  decode::ImageSize size;
  decode::Error error;
  source.load(decode::FileReader::kMaxBytes, [&](std::span<const std::uint8_t> bytes) {
    decoder.emplace(bytes);
    error = decoder->open();
    if (!error) error = decoder->output_size(options, &size);
  });
  if (error) raise_decode_error(source, error);

  const int rank = rank_of(options.mode);
  const npy_intp dims[3] = {size.height, size.width, decode::channels_of(options.mode)};
  const Target target =
      out.is_none() ? new_target(dims, rank) : existing_target(out, dims, rank, source.bytes());
  {
    const WithoutGil without_gil;
    error = decoder->decode(options, target.pixels, target.row_stride);
    decoder.reset();
  }
  if (error) raise_decode_error(source, error);
  return target.array;
}

/// The fields of stook.io.JpegInfo, in its order.
py::tuple jpeg_info(const py::object& source_object) {
  Source source(source_object);
  decode::JpegInfo info;
  decode::Error error;
  // The header is at the beginning; how long it is shows only when it is read.
  std::size_t want = std::size_t{64} << 10U;
  do {
    source.load(want, [&](std::span<const std::uint8_t> bytes) {
      error = decode::read_jpeg_info(bytes, &info);
    });
    want *= 4;
  } while (error.code == ErrorCode::kTruncated && !source.complete());
  if (error) raise_decode_error(source, error);
  const auto text = [](std::string_view name) { return py::str(name.data(), name.size()); };
  const py::object subsampling =
      info.subsampling.empty() ? py::object(py::none()) : text(info.subsampling);
  return py::make_tuple(info.width, info.height, info.components, text(info.color_space),
                        subsampling, info.progressive, info.arithmetic, info.orientation);
}

}  // namespace

void register_jpeg(py::module_& module) {
  module.def("decode_jpeg", &decode_jpeg, py::arg("source"), py::arg("out"), py::arg("gray"),
             py::arg("max_pixels"), py::arg("allow_truncated"), py::arg("apply_orientation"));
  module.def("jpeg_info", &jpeg_info, py::arg("source"));
}

}  // namespace stook::bindings
