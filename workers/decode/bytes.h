#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "workers/decode/error.h"
#include "workers/decode/file.h"

namespace stook::decode {

/// Bytes that can be read from anywhere.
///
/// One thread at a time; needs no GIL. Blocks as long as the file system does; a signal ends a call
/// with kSystem and EINTR, so that the caller can look at its signal handlers and go on.
class ByteSource {
 public:
  ByteSource() = default;
  virtual ~ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  virtual std::uint64_t size() const = 0;

  /// Fills `to` from `offset` on. `*done` bytes of it are there already; what comes is added.
  /// What lies behind the end is kEndsEarly, also where a file has become shorter since.
  virtual Error read(std::uint64_t offset, std::span<std::uint8_t> to, std::size_t* done) = 0;
};

/// Memory of the caller, which must stay.
class MemoryBytes final : public ByteSource {
 public:
  explicit MemoryBytes(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}
  std::uint64_t size() const override { return bytes_.size(); }
  Error read(std::uint64_t offset, std::span<std::uint8_t> to, std::size_t* done) override;

 private:
  std::span<const std::uint8_t> bytes_;
};

/// A regular file or a part of one, by a descriptor of its own.
class FileBytes final : public ByteSource {
 public:
  ~FileBytes() override;

  /// Whether the path leads to a file of known size. Others (pipes, devices, /proc) must be read
  /// from beginning to end. True where nothing is there: `open` then says so.
  static bool has_size(const char* path);

  /// kOutsideFile if the file ends before the part.
  Error open(const char* path, const FilePart& part = {});

  std::uint64_t size() const override { return size_; }
  Error read(std::uint64_t offset, std::span<std::uint8_t> to, std::size_t* done) override;

 private:
  int fd_ = -1;
  std::uint64_t begin_ = 0;
  std::uint64_t size_ = 0;
};

/// Bytes that come one after the other: a part of others, a member of an archive.
class ByteStream {
 public:
  ByteStream() = default;
  virtual ~ByteStream() = default;
  ByteStream(const ByteStream&) = delete;
  ByteStream& operator=(const ByteStream&) = delete;

  /// How many bytes have not been read yet. Memory may be taken for that many: an implementation
  /// promises no more than what is there can give.
  virtual std::uint64_t left() const = 0;

  /// Fills `to` with the next bytes. `*done` bytes of it are there already; after EINTR the same
  /// call goes on where it stopped.
  virtual Error read(std::span<std::uint8_t> to, std::size_t* done) = 0;

  /// To be called where nothing more is wanted: an error if what was read is not what was written.
  virtual Error finish() { return {}; }
};

/// All of `bytes`, from the beginning on.
class PlainStream final : public ByteStream {
 public:
  explicit PlainStream(ByteSource& bytes) : bytes_(bytes) {}
  std::uint64_t left() const override { return bytes_.size() - at_; }
  Error read(std::span<std::uint8_t> to, std::size_t* done) override;

 private:
  ByteSource& bytes_;
  std::uint64_t at_ = 0;  // where the call that is not finished began
};

/// kSystem with this number.
Error system_error(int number);

/// kEndsEarly: `there` of the `asked` bytes are there.
Error ends_early(std::uint64_t there, std::uint64_t asked);

}  // namespace stook::decode
