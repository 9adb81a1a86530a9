#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "workers/decode/bytes.h"
#include "workers/decode/error.h"
#include "workers/decode/npy_header.h"

namespace stook::decode {

/// One .npy file (NEP 1, format versions 1 to 3), read from a stream into memory of the caller.
///
/// The stream must stay until the reader is gone. One thread at a time; needs no GIL; blocks as the
/// stream does. `open`, then `data_size`, then `read`; each may be called again after EINTR.
class NpyReader {
 public:
  explicit NpyReader(ByteStream& stream) : stream_(stream) {}

  /// Reads the header.
  Error open(NpyHeader* header);

  /// How many bytes the items of an array are. An error where the stream does not have them:
  /// nothing may be allocated before this was asked.
  Error data_size(const NpyHeader& header, std::uint64_t item_size, std::uint64_t* size) const;

  /// Reads the items, in the order in which they are stored; `*done` of them are there already.
  Error read(std::span<std::uint8_t> to, std::size_t* done) { return stream_.read(to, done); }

 private:
  Error read_text(std::size_t size);

  ByteStream& stream_;
  std::vector<std::uint8_t> text_;  // magic, version, length and header, as far as they are read
  std::size_t wanted_ = 0;
  std::size_t done_ = 0;
};

}  // namespace stook::decode
