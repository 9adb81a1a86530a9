#include "workers/decode/tar.h"

#include <numpy/arrayobject.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "bindings/byte_input.h"
#include "bindings/python_api.h"
#include "bindings/register.h"
#include "bindings/source.h"

namespace stook::bindings {
namespace {

namespace py = pybind11;

// Read between two looks at the signal handlers.
constexpr std::size_t kHeaders = 4096;

/// A copy of `count` items of NumPy's type `type`.
py::object array_of(int type, const void* items, std::size_t count, std::size_t item_size) {
  const auto length = static_cast<npy_intp>(count);
  auto array = py::reinterpret_steal<py::object>(PyArray_SimpleNew(1, &length, type));
  if (!array) throw py::error_already_set();
  if (count != 0) std::memcpy(PyArray_DATA(as_array(array.ptr())), items, count * item_size);
  return array;
}

py::object int64_array(const std::vector<std::int64_t>& values) {
  return array_of(NPY_INT64, values.data(), values.size(), sizeof(std::int64_t));
}

py::object uint8_array(std::string_view bytes) {
  return array_of(NPY_UINT8, bytes.data(), bytes.size(), 1);
}

/// Names of all members in one, where they end in it, offsets and sizes; members of the samples,
/// and where these end in them.
py::tuple index_tar(const py::object& source_object, bool allow_truncated) {
  Source source(source_object);
  ByteInput input(source);
  decode::TarReader reader(input.bytes());
  bool cut = false;
  while (!reader.at_end() && !cut) {
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    source.check([&]() -> decode::Error {
      decode::Error error = reader.read(kHeaders);
      cut = allow_truncated && error.code == decode::ErrorCode::kEndsEarly;
      if (cut) return {};
      if (error.code == decode::ErrorCode::kEndsEarly)
        error.text += "; allow_truncated=True keeps the members that are whole";
      return error;
    });
  }
  decode::TarSamples samples;
  source.check([&]() -> decode::Error {
    if (decode::Error error = reader.resolve_links(cut); error) return error;
    return decode::group_samples(reader.members(), &samples);
  });
  const decode::TarMembers& members = reader.members();
  return py::make_tuple(uint8_array(members.names), int64_array(members.name_ends),
                        int64_array(members.offsets), int64_array(members.sizes),
                        int64_array(samples.members), int64_array(samples.ends));
}

}  // namespace

void register_tar(py::module_& module) {
  module.def("index_tar", &index_tar, py::arg("source"), py::arg("allow_truncated"));
}

}  // namespace stook::bindings
