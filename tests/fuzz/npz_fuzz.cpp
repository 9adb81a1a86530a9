// load_npz, up to where Python comes in: the directory, and each member to its end.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "workers/decode/npy.h"
#include "workers/decode/zip.h"

using namespace stook::decode;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // What is written off for one input: members may overlap, and each may be inflated.
  constexpr std::uint64_t kMost = std::uint64_t{16} << 20U;
  MemoryBytes bytes({data, size});
  ZipDirectory directory(bytes);
  if (directory.open()) return 0;
  std::uint64_t all = 0;
  for (const ZipMember& member : directory.members()) {
    ZipStream stream(directory, member);
    if (stream.open()) continue;
    // Memory is taken for what is promised, so that must be bounded by what is there.
    if (stream.left() / 2048 > size) std::abort();
    all += stream.left();
    if (all > kMost) return 0;
    NpyReader reader(stream);
    NpyHeader header;
    std::uint64_t items = 0;
    if (reader.open(&header) || reader.data_size(header, 1, &items)) continue;
    std::vector<std::uint8_t> to(static_cast<std::size_t>(items));
    // In two pieces, as large arrays are read.
    const std::size_t first = to.size() / 3;
    std::size_t done = 0;
    if (reader.read(std::span(to).first(first), &done)) continue;
    done = 0;
    if (reader.read(std::span(to).subspan(first), &done)) continue;
    static_cast<void>(stream.finish());
  }
  return 0;
}
