#pragma once

#include <cstddef>
#include <optional>

#include "bindings/source.h"
#include "workers/decode/bytes.h"

namespace stook::bindings {

/// The bytes of a source, readable from anywhere: memory as it is exported, regular files through a
/// descriptor. What has no known size, such as a pipe, is read into memory first, up to the 1 GiB
/// of FileReader. Made and destroyed with the GIL held; the source must stay.
class ByteInput {
 public:
  explicit ByteInput(Source& source) {
    const char* const path = source.path();
    bool direct = false;
    if (path != nullptr) {
      source.check([this, path, &source, &direct]() -> decode::Error {
        direct = decode::FileBytes::has_size(path);
        if (!direct) return {};
        return file_.open(path, source.part());
      });
    }
    if (direct) return;
    if (path != nullptr) source.load(decode::FileReader::kMaxBytes, [](auto) {});
    memory_.emplace(source.bytes());
  }

  decode::ByteSource& bytes() {
    if (memory_) return *memory_;
    return file_;
  }

 private:
  std::optional<decode::MemoryBytes> memory_;
  decode::FileBytes file_;
};

}  // namespace stook::bindings
