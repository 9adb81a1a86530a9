#include "workers/decode/batch.h"

#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

namespace stook::decode {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kLongestTurn{100};

}  // namespace

BatchDecoder::BatchDecoder(std::vector<BatchItem> items, const ResizedCropOptions& options)
    : items_(std::move(items)), options_(options) {
  outcomes_.reserve(items_.size());
}

int BatchDecoder::run(const CropTarget& first, std::ptrdiff_t item_stride) {
  const Clock::time_point begun = Clock::now();
  while (outcomes_.size() < items_.size()) {
    if (Clock::now() - begun > kLongestTurn) return EINTR;
    const BatchItem& item = items_[outcomes_.size()];
    CropTarget target = first;
    target.data += static_cast<std::ptrdiff_t>(outcomes_.size()) * item_stride;
    BatchOutcome outcome;
    std::span<const std::uint8_t> bytes = item.bytes;
    if (item.path != nullptr && !item.refused) {
      if (!file_) file_.emplace().set_part(item.part);
      outcome.system_error = file_->read(item.path);
      if (outcome.system_error == EINTR) return EINTR;
      bytes = file_->bytes();
      if (file_->is_short()) outcome.error = outside_file(bytes.size(), *item.part.length);
    }
    if (!outcome.failed() && !item.refused)
      outcome.error = decode_resized_crop(bytes, item.box, item.flip, options_, target);
    file_.reset();
    if (outcome.failed() || item.refused) clear(target);
    outcomes_.push_back(std::move(outcome));
  }
  return 0;
}

void BatchDecoder::clear(const CropTarget& target) const {
  const std::size_t channels = channels_of(options_.jpeg.mode);
  const std::size_t planes = target.channel_stride != 0 ? channels : 1;
  const std::size_t row = options_.size.width * (channels / planes) * size_of(options_.type);
  for (std::size_t c = 0; c < planes; ++c) {
    std::uint8_t* at = target.data + static_cast<std::ptrdiff_t>(c) * target.channel_stride;
    for (std::uint32_t y = 0; y < options_.size.height; ++y, at += target.row_stride)
      std::memset(at, 0, row);
  }
}

}  // namespace stook::decode
