#include "workers/decode/resized_crop.h"

#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "bindings/errors.h"
#include "bindings/python_api.h"
#include "bindings/register.h"
#include "bindings/source.h"
#include "workers/decode/batch.h"

namespace stook::bindings {
namespace {

namespace py = pybind11;

using Box = std::array<double, 4>;  // left, top, right, bottom
using Sources = std::vector<std::unique_ptr<Source>>;

/// What stook.io has checked and put into the numbers that the decoder takes.
struct Recipe {
  decode::ResizedCropOptions options;
  bool planes = false;  // channels in front of rows
  bool batch = false;   // images in front of everything
};

int numpy_type(decode::ElementType type) {
  switch (type) {
    case decode::ElementType::kFloat32:
      return NPY_FLOAT32;
    case decode::ElementType::kFloat16:
      return NPY_FLOAT16;
    default:
      return NPY_UINT8;
  }
}

/// The result's dimensions: [images,] [channels,] rows, columns [, channels].
struct Dimensions {
  std::array<npy_intp, 4> of{};
  int rank = 0;
  int packed = 0;  // how many of the last lie together
  int row_axis = 0;
  int channel_axis = -1;  // of planes

  void add(npy_intp length) { of[static_cast<std::size_t>(rank++)] = length; }
};

Dimensions dimensions_of(const Recipe& recipe, std::size_t images) {
  Dimensions dims;
  const bool rgb = recipe.options.jpeg.mode == decode::PixelMode::kRgb;
  const unsigned channels = decode::channels_of(recipe.options.jpeg.mode);
  if (recipe.batch) dims.add(static_cast<npy_intp>(images));
  if (rgb && recipe.planes) {
    dims.channel_axis = dims.rank;
    dims.add(channels);
  }
  dims.row_axis = dims.rank;
  dims.add(recipe.options.size.height);
  dims.add(recipe.options.size.width);
  if (rgb && !recipe.planes) dims.add(channels);
  dims.packed = rgb && !recipe.planes ? 2 : 1;
  return dims;
}

py::tuple as_tuple(const npy_intp* values, int count) {
  py::tuple tuple(static_cast<std::size_t>(count));
  for (int i = 0; i < count; ++i) tuple[static_cast<std::size_t>(i)] = py::int_(values[i]);
  return tuple;
}

std::string text_of(const npy_intp* values, int count) {
  return py::repr(as_tuple(values, count)).cast<std::string>();
}

/// Bytes that an array reaches over.
struct Reach {
  const std::uint8_t* low = nullptr;
  const std::uint8_t* high = nullptr;
};

/// Refuses an `out` that does not fit; otherwise says what memory it covers.
Reach checked(py::handle out, const Dimensions& dims, int type) {
  const std::string wanted = py::str(py::reinterpret_steal<py::object>(
                                         reinterpret_cast<PyObject*>(PyArray_DescrFromType(type))))
                                 .cast<std::string>();
  if (PyArray_Check(out.ptr()) == 0) {
    throw py::type_error("out must be a numpy.ndarray of dtype " + wanted + ", not " +
                         Py_TYPE(out.ptr())->tp_name);
  }
  auto* const array = as_array(out.ptr());
  if (PyArray_TYPE(array) != type || PyArray_ISNOTSWAPPED(array) == 0) {
    const py::object dtype =
        py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(PyArray_DESCR(array)));
    throw py::type_error("out must have dtype " + wanted + ", not " +
                         py::str(dtype).cast<std::string>());
  }
  if (PyArray_ISWRITEABLE(array) == 0)
    throw py::value_error("out must be writable; it is read-only");
  const npy_intp* const shape = PyArray_DIMS(array);
  bool same = PyArray_NDIM(array) == dims.rank;
  for (int i = 0; same && i < dims.rank; ++i)
    same = shape[i] == dims.of[static_cast<std::size_t>(i)];
  if (!same) {
    throw py::value_error("out has shape " + text_of(shape, PyArray_NDIM(array)) +
                          ", the result needs " + text_of(dims.of.data(), dims.rank));
  }
  // From the inside out: the last dimensions lie together, each other one steps over all within it.
  const npy_intp* const strides = PyArray_STRIDES(array);
  const npy_intp item = PyArray_ITEMSIZE(array);
  npy_intp extent = item;
  std::ptrdiff_t low = 0;
  bool fits = PyArray_ISALIGNED(array) != 0;
  for (int i = dims.rank - 1; i >= 0 && PyArray_SIZE(array) > 0; --i) {
    if (shape[i] == 1) continue;  // its stride means nothing, and NumPy leaves any value there
    const bool packed = i >= dims.rank - dims.packed;
    fits = fits && (packed ? strides[i] == extent : std::abs(strides[i]) >= extent);
    extent += (shape[i] - 1) * std::abs(strides[i]);
    if (strides[i] < 0) low += (shape[i] - 1) * strides[i];
  }
  if (!fits) {
    throw py::value_error(
        "out must have contiguous, aligned rows, and rows, channels and images that do not overlap "
        "and "
        "come in this order; its strides are " +
        text_of(strides, dims.rank));
  }
  const auto* const data = static_cast<const std::uint8_t*>(PyArray_DATA(array)) + low;
  return {data, data + (PyArray_SIZE(array) > 0 ? extent : 0)};
}

void require_apart(const Reach& out, const Sources& sources) {
  const std::less<> before;
  for (const auto& source : sources) {
    if (source == nullptr) continue;
    const std::span<const std::uint8_t> bytes = source->bytes();
    if (bytes.empty() || source->path() != nullptr) continue;
    if (before(out.low, bytes.data() + bytes.size()) && before(bytes.data(), out.high))
      throw py::value_error("out and source share memory");
  }
}

/// One of `sources` as the decoder takes it, or why it is none: what Python has found wrong stands
/// in its place. Of a batch that is an error of its own.
py::object refused(const Recipe& recipe, py::handle object, Sources& sources) {
  sources.emplace_back();
  if (PyExceptionInstance_Check(object.ptr()) != 0)
    return py::reinterpret_borrow<py::object>(object);
  if (!recipe.batch) {
    sources.back() = std::make_unique<Source>(object);
    return {};
  }
  try {
    sources.back() = std::make_unique<Source>(object);
    return {};
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_Exception)) throw;
    error.restore();
  } catch (const py::builtin_exception& error) {
    error.set_error();
  }
  return py::reinterpret_steal<py::object>(take_exception().release());
}

/// Decodes all of `sources`. Returns the array, and a list of (index, exception) of those that
/// failed, whose places are filled with zeros.
py::tuple run(const Recipe& recipe, const py::sequence& objects,
              const std::vector<std::optional<Box>>& boxes, const std::vector<bool>& flips,
              const py::object& out) {
  Sources sources;
  std::vector<py::object> refusals;
  std::vector<decode::BatchItem> items;
  for (const py::handle object : objects) {
    const std::size_t i = items.size();
    refusals.push_back(refused(recipe, object, sources));
    decode::BatchItem item;
    item.refused = bool{refusals.back()};
    if (const Source* const source = sources.back().get()) {
      item.path = source->path();
      item.part = source->part();
      if (item.path == nullptr) item.bytes = source->bytes();
    }
    if (boxes[i]) item.box = {(*boxes[i])[0], (*boxes[i])[1], (*boxes[i])[2], (*boxes[i])[3]};
    item.flip = flips[i];
    items.push_back(item);
  }

  const Dimensions dims = dimensions_of(recipe, items.size());
  const int type = numpy_type(recipe.options.type);
  py::object array = out;
  if (out.is_none()) {
    array = py::reinterpret_steal<py::object>(
        PyArray_SimpleNew(dims.rank, const_cast<npy_intp*>(dims.of.data()), type));
    if (!array) throw py::error_already_set();
  } else {
    require_apart(checked(out, dims, type), sources);
  }
  auto* const result = as_array(array.ptr());
  decode::CropTarget target;
  target.data = static_cast<std::uint8_t*>(PyArray_DATA(result));
  target.row_stride = PyArray_STRIDE(result, dims.row_axis);
  if (dims.channel_axis >= 0) target.channel_stride = PyArray_STRIDE(result, dims.channel_axis);
  const std::ptrdiff_t image_stride = recipe.batch ? PyArray_STRIDE(result, 0) : 0;

  decode::BatchDecoder decoder(std::move(items), recipe.options);
  int stopped = EINTR;
  while (stopped == EINTR) {
    {
      const WithoutGil without_gil;
      stopped = decoder.run(target, image_stride);
    }
    if (stopped == EINTR && PyErr_CheckSignals() != 0) throw py::error_already_set();
  }

  py::list errors;
  for (std::size_t i = 0; i < decoder.outcomes().size(); ++i) {
    const decode::BatchOutcome& outcome = decoder.outcomes()[i];
    if (refusals[i]) errors.append(py::make_tuple(i, refusals[i]));
    if (!outcome.failed()) continue;
    errors.append(py::make_tuple(i, outcome.system_error != 0
                                        ? sources[i]->system_exception(outcome.system_error)
                                        : sources[i]->decode_exception(outcome.error)));
  }
  return py::make_tuple(array, errors);
}

py::tuple decode_resized_crops(const py::sequence& sources,
                               const std::vector<std::optional<Box>>& boxes,
                               const std::vector<bool>& flips, std::uint32_t height,
                               std::uint32_t width, bool gray, int filter, bool scaled_decode,
                               int element_type, bool planes, const std::array<double, 3>& scale,
                               const std::array<double, 3>& offset, std::uint64_t max_pixels,
                               bool allow_truncated, bool batch, const py::object& out) {
  Recipe recipe;
  recipe.planes = planes;
  recipe.batch = batch;
  decode::ResizedCropOptions& options = recipe.options;
  options.jpeg.mode = gray ? decode::PixelMode::kGray : decode::PixelMode::kRgb;
  options.jpeg.max_pixels = max_pixels;
  options.jpeg.allow_truncated = allow_truncated;
  options.size = {height, width};
  options.filter = static_cast<decode::Filter>(filter);
  options.scaled_decode = scaled_decode;
  options.type = static_cast<decode::ElementType>(element_type);
  for (std::size_t c = 0; c < 3; ++c) {
    options.scale.scale[c] = static_cast<float>(scale[c]);
    options.scale.offset[c] = static_cast<float>(offset[c]);
  }
  return run(recipe, sources, boxes, flips, out);
}

}  // namespace

void register_resized_crop(py::module_& module) {
  module.def("decode_resized_crops", &decode_resized_crops, py::arg("sources"), py::arg("boxes"),
             py::arg("flips"), py::arg("height"), py::arg("width"), py::arg("gray"),
             py::arg("filter"), py::arg("scaled_decode"), py::arg("element_type"),
             py::arg("planes"), py::arg("scale"), py::arg("offset"), py::arg("max_pixels"),
             py::arg("allow_truncated"), py::arg("batch"), py::arg("out"));
}

}  // namespace stook::bindings
