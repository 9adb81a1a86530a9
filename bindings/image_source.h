#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include <pybind11/pybind11.h>

#include "bindings/python_api.h"
#include "workers/decode/error.h"
#include "workers/decode/file.h"

namespace stook::bindings {

/// What is to be decoded: a file, or the bytes of an object that stay exported as long as this
/// lives. Made, read from and destroyed with the GIL held.
class ImageSource {
 public:
  /// Throws py::type_error for what is neither a path nor a buffer of bytes.
  explicit ImageSource(pybind11::handle object);
  ~ImageSource();
  ImageSource(const ImageSource&) = delete;
  ImageSource& operator=(const ImageSource&) = delete;

  /// Reads up to `want` bytes and calls `use` with all that are there, both without the GIL.
  template <typename Use>
  void load(std::size_t want, Use use) {
    int error = EINTR;
    while (error == EINTR) {
      {
        const WithoutGil without_gil;
        error = path_ ? reader_.read(path(), want) : 0;
        if (error == 0) use(bytes());
      }
      if (error == EINTR && PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    }
    if (error != 0) throw_error(system_exception(error));
  }

  /// As the system wants it; null for a buffer. Needs no GIL.
  const char* path() const;

  /// Everything that was loaded. Needs no GIL.
  std::span<const std::uint8_t> bytes() const;

  bool complete() const { return !path_ || reader_.at_end(); }

  /// The exception for a file that could not be read; MemoryError for ENOMEM.
  pybind11::object system_exception(int error) const;

  /// The exception for an image that could not be decoded.
  pybind11::object decode_exception(const decode::Error& error) const;

  [[noreturn]] static void throw_error(const pybind11::object& exception);

 private:
  std::string type_name() const;
  pybind11::object name() const;
  void export_buffer();

  pybind11::object object_;
  pybind11::object path_;          // str or bytes; null for a buffer
  pybind11::object encoded_path_;  // bytes for the system
  Py_buffer view_{};
  decode::FileReader reader_;
};

}  // namespace stook::bindings
