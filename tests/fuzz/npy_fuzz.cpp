// load_npy, up to where Python comes in: the header, the sizes, the items.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "workers/decode/npy.h"

using namespace stook::decode;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  MemoryBytes bytes({data, size});
  PlainStream stream(bytes);
  NpyReader reader(stream);
  NpyHeader header;
  if (reader.open(&header)) return 0;
  for (const std::uint64_t item_size : {0U, 1U, 8U, 12U}) {
    std::uint64_t items = 0;
    if (reader.data_size(header, item_size, &items)) continue;
    if (items > stream.left() || stream.left() > size) std::abort();
    std::vector<std::uint8_t> to(static_cast<std::size_t>(items));
    std::size_t done = 0;
    if (reader.read(to, &done) || done != items) std::abort();
  }
  return 0;
}
