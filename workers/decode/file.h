#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>

namespace stook::decode {

/// The bytes of one file, read into memory of this process (never mapped: a file that shrinks under
/// a mapping is a SIGBUS).
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

  /// Reads until `want` bytes are there or the file ends. Returns 0 or an errno value.
  /// The path of the first call counts; later calls go on with the same file.
  int read(const char* path, std::size_t want = kMaxBytes);

  std::span<const std::uint8_t> bytes() const { return {data_.get(), size_}; }
  bool at_end() const { return at_end_; }

 private:
  struct Free {
    void operator()(std::uint8_t* memory) const noexcept { std::free(memory); }
  };

  int open(const char* path);
  int reserve(std::size_t capacity);

  std::size_t max_bytes_;
  int fd_ = -1;
  bool at_end_ = false;
  std::size_t expected_ = 0;  // what fstat promised; 0 where the file does not say (pipes, /proc)
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
  std::unique_ptr<std::uint8_t[], Free> data_;
};

}  // namespace stook::decode
