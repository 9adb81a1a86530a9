// Writes small JPEGs of every kind into a folder, each behind the parameters that fuzz targets read
// first: `make_seeds FOLDER PARAMETERS`, the latter as the number of bytes.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "tests/cpp/unit/jpeg_recipes.h"

namespace {

using stook::decode::Bytes;
using stook::decode::Recipe;

int written = 0;

void write(const std::string& folder, std::size_t parameters, const Recipe& recipe) {
  const Bytes jpeg = stook::decode::encode(recipe);
  for (const unsigned how : {0U, 0x27U}) {
    Bytes seed;
    for (std::size_t i = 0; i < parameters; ++i)
      seed.push_back(static_cast<std::uint8_t>((how + 37 * i * how) % 64));
    seed.insert(seed.end(), jpeg.begin(), jpeg.end());
    const std::string path = folder + "/seed-" + std::to_string(written++) + ".jpg";
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    const bool done =
        file != nullptr && std::fwrite(seed.data(), 1, seed.size(), file) == seed.size();
    if (file == nullptr || std::fclose(file) != 0 || !done) {
      std::perror(path.c_str());
      std::exit(1);
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fputs("make_seeds FOLDER PARAMETERS\n", stderr);
    return 2;
  }
  const std::string folder = arguments[1];
  const std::size_t parameters = std::strtoul(arguments[2], nullptr, 10);
  constexpr int kSamplings[][2] = {{1, 1}, {2, 1}, {1, 2}, {2, 2}, {4, 1}};
  for (const auto& sampling : kSamplings) {
    for (int coding = 0; coding < 4; ++coding) {
      Recipe recipe;
      recipe.width = 35;
      recipe.height = 26;
      recipe.h = sampling[0];
      recipe.v = sampling[1];
      recipe.progressive = coding == 1;
      recipe.arithmetic = coding == 2;
      recipe.restart_rows = coding == 3 ? 1 : 0;
      write(folder, parameters, recipe);
    }
  }
  for (const J_COLOR_SPACE space : {JCS_GRAYSCALE, JCS_RGB, JCS_CMYK, JCS_YCCK}) {
    Recipe recipe;
    recipe.from = space == JCS_YCCK ? JCS_CMYK : space;
    recipe.coded = space;
    recipe.h = recipe.v = 1;
    recipe.adobe_marker = space == JCS_YCCK;
    write(folder, parameters, recipe);
  }
  return 0;
}
