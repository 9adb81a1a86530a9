#include "workers/decode/jpeg.h"

#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

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
#include "bindings/source.h"

namespace stook::bindings {
namespace {

namespace py = pybind11;

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
  } while (error.code == decode::ErrorCode::kTruncated && !source.complete());
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
