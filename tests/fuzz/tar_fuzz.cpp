// TarIndex: headers, hard links, samples. What comes out must lie inside of what went in.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "workers/decode/tar.h"

using namespace stook::decode;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  MemoryBytes bytes({data, size});
  TarReader reader(bytes);
  Error error;
  while (!error && !reader.at_end()) error = reader.read(3);
  if (error && error.code != ErrorCode::kEndsEarly) return 0;
  if (reader.resolve_links(static_cast<bool>(error))) return 0;
  const TarMembers& members = reader.members();
  const auto all = static_cast<std::int64_t>(size);
  for (std::size_t i = 0; i < members.count(); ++i) {
    if (members.offsets[i] < 0 || members.sizes[i] < 0 || members.offsets[i] > all ||
        members.sizes[i] > all - members.offsets[i] || members.name(i).size() > size)
      std::abort();
  }
  TarSamples samples;
  if (group_samples(members, &samples)) return 0;
  std::int64_t before = 0;
  for (const std::int64_t end : samples.ends) {
    if (end <= before) std::abort();
    before = end;
  }
  if (before != static_cast<std::int64_t>(samples.members.size())) std::abort();
  return 0;
}
