#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>

#include "workers/decode/error.h"

namespace stook::decode {

/// Which bytes of a file: `length` from `offset` on, or all of them.
struct FilePart {
  std::uint64_t offset = 0;
  std::optional<std::uint64_t> length;  // none: to the end of the file, whatever that is
};

/// The bytes of one file, or of a part of one, read into memory of this process (never mapped: a
/// file that shrinks under a mapping is a SIGBUS).
///
/// One thread at a time; needs no GIL. `read` blocks as long as the file system does; a signal ends
/// it with EINTR, so that the caller can look at its signal handlers, and calling it again goes on
/// where it stopped.
class FileReader {
 public:
  /// No JPEG inside any sensible pixel limit is larger; a longer file is EFBIG. Keeps `/dev/zero`
  /// and sparse terabytes from eating the machine.
  static constexpr std::size_t kMaxBytes = std::size_t{1} << 30U;

  explicit FileReader(std::size_t max_bytes = kMaxBytes) : max_bytes_(max_bytes) {}
  ~FileReader();
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  /// Only these bytes, of a file that can be read from anywhere (a pipe is ESPIPE). Before `read`.
  void set_part(FilePart part) { part_ = part; }

  /// Reads until `want` bytes are there, or the file or the part ends. Returns 0 or an errno value.
  /// The path of the first call counts; later calls go on with the same file.
  int read(const char* path, std::size_t want = kMaxBytes);

  std::span<const std::uint8_t> bytes() const { return {data_.get(), size_}; }
  /// Nothing comes behind `bytes()`.
  bool at_end() const { return at_end_; }
  /// The file ended before the part that was asked for.
  bool is_short() const { return at_end_ && part_.length && size_ < *part_.length; }

 private:
  struct Free {
    void operator()(std::uint8_t* memory) const noexcept { std::free(memory); }
  };

  int open(const char* path);
  int reserve(std::size_t capacity);
  ::ssize_t read_on(std::size_t count);

  std::size_t max_bytes_;
  FilePart part_;
  int fd_ = -1;
  bool at_end_ = false;
  // What fstat promised, at most the part's length; 0 where nothing says (pipes, /proc).
  std::size_t expected_ = 0;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
  std::unique_ptr<std::uint8_t[], Free> data_;
};

/// kOutsideFile: `there` of the `asked` bytes of a part are in the file.
Error outside_file(std::uint64_t there, std::uint64_t asked);

}  // namespace stook::decode
