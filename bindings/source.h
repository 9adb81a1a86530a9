// What a decoder reads from: a path, a part of a file, or an object that exports bytes.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "bindings/python_api.h"
#include "workers/decode/error.h"
#include "workers/decode/file.h"

namespace stook::bindings {

class Source;

/// Raises the exception for `error` of decoding `source`.
[[noreturn]] void raise_decode_error(const Source& source, const decode::Error& error);

/// What is to be decoded: a file, a part of one given as (path, offset, length), or the bytes of an
/// object that stay exported as long as this lives. Made, read from and destroyed with the GIL
/// held.
class Source {
 public:
  /// Throws what Python is to raise where `object` is nothing of the kind.
  explicit Source(py::handle object);
  ~Source();
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  /// Reads up to `want` bytes and calls `use` with all that are there, both without the GIL.
  template <typename Use>
  void load(std::size_t want, Use use) {
    run([this, want, &use] {
      if (const int error = path_ ? reader_.read(path(), want) : 0; error != 0) return error;
      if (!reader_.is_short()) use(bytes());
      return 0;
    });
    if (reader_.is_short()) raise_short();
  }

  /// Runs `step` without the GIL. It returns 0 or an errno value, which is raised; EINTR runs it
  /// again once signal handlers have run.
  template <typename Step>
  void run(Step step) {
    while (true) {
      int error = 0;
      {
        const WithoutGil without_gil;
        error = step();
      }
      if (error == 0) return;
      raise_unless_interrupted(error);
    }
  }

  /// The same for a `step` that returns what decoding says; every error is raised.
  template <typename Step>
  void check(Step step) {
    decode::Error error;
    run([&error, &step] {
      error = step();
      return error.system_errno;
    });
    if (error) raise_decode_error(*this, error);
  }

  /// Everything that was loaded.
  std::span<const std::uint8_t> bytes() const {
    if (path_) return reader_.bytes();
    return {static_cast<const std::uint8_t*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

  /// Whether there is nothing behind `bytes()`.
  bool complete() const { return !path_ || reader_.at_end(); }

  /// The file, as the system wants it; null for a buffer.
  const char* path() const { return path_ ? PyBytes_AS_STRING(encoded_path_.ptr()) : nullptr; }

  /// Which bytes of the file.
  const decode::FilePart& part() const { return part_; }

  /// The exception for a file that could not be read; MemoryError for ENOMEM.
  py::object system_exception(int error) const;

  /// The exception for what could not be decoded: DecodeError in general.
  py::object decode_exception(const decode::Error& error) const;

  /// How messages call it: the path, "path[offset:end]", or "<bytes of 123 bytes>".
  py::object name() const;

  /// Raises that the file ends before the part that was asked for.
  [[noreturn]] void raise_short() const;

 private:
  std::string type_name() const { return Py_TYPE(object_.ptr())->tp_name; }
  void take_part(py::handle tuple);
  void take_path(py::handle object);
  void export_buffer();
  void raise_unless_interrupted(int error) const;

  py::object object_;
  py::object path_;          // str or bytes; null for a buffer
  py::object encoded_path_;  // bytes for the system
  decode::FilePart part_;
  Py_buffer view_{};
  decode::FileReader reader_;
};

}  // namespace stook::bindings
