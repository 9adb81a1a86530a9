#include "workers/decode/npy_header.h"

#include <algorithm>
#include <array>
#include <utility>

namespace stook::decode {
namespace {

// Of lists and tuples inside each other; each level of nested records takes two.
constexpr int kMaxDepth = 64;

constexpr bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::uint32_t code, std::string* to) {
  const auto add = [to](std::uint32_t byte) { to->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    add(code);
  } else if (code < 0x800) {
    add(0xC0U | code >> 6U);
    add(0x80U | (code & 0x3FU));
  } else if (code < 0x10000) {
    add(0xE0U | code >> 12U);
    add(0x80U | (code >> 6U & 0x3FU));
    add(0x80U | (code & 0x3FU));
  } else {
    add(0xF0U | code >> 18U);
    add(0x80U | (code >> 12U & 0x3FU));
    add(0x80U | (code >> 6U & 0x3FU));
    add(0x80U | (code & 0x3FU));
  }
}

constexpr bool is_surrogate(std::uint32_t code) { return code >= 0xD800 && code < 0xE000; }

/// Whether every byte belongs to a code point in its shortest form (RFC 3629).
bool is_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto first = static_cast<unsigned char>(text[i++]);
    if (first < 0x80) continue;
    const unsigned more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    if (first < 0xC2 || first > 0xF4 || text.size() - i < more) return false;
    std::uint32_t code = first & (0x3FU >> more);
    for (unsigned k = 0; k < more; ++k) {
      const auto next = static_cast<unsigned char>(text[i++]);
      if ((next & 0xC0U) != 0x80U) return false;
      code = code << 6U | (next & 0x3FU);
    }
    constexpr std::array<std::uint32_t, 4> kSmallest = {0, 0x80, 0x800, 0x10000};
    if (code < kSmallest[more] || code > 0x10FFFF || is_surrogate(code)) return false;
  }
  return true;
}

class Parser {
 public:
  Parser(std::string_view text, bool long_suffix) : text_(text), long_suffix_(long_suffix) {}

  /// False where there is something else; `problem` then says what.
  bool parse(Literal* to) {
    skip_space();
    if (!value(to, 0)) return false;
    skip_space();
    return at_ == text_.size() || fail("something follows the dict");
  }

  Error problem() const {
    return {ErrorCode::kBadHeader, "bad .npy header: " + problem_ + " at byte " +
                                       std::to_string(at_) + " of " + quoted(text_)};
  }

 private:
  bool fail(const char* problem) {
    problem_ = problem;
    return false;
  }

  bool more() const { return at_ < text_.size(); }
  bool next_is(char c) const { return more() && text_[at_] == c; }

  bool take(char c) {
    if (!next_is(c)) return false;
    ++at_;
    return true;
  }

  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  void skip_space() {
    while (more() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
  }

  bool value(Literal* to, int depth) {
    if (depth > kMaxDepth) return fail("too many levels");
    if (next_is('\'') || next_is('"')) return text(to);
    if (take('{')) return items(to, Literal::Kind::kDict, '}', depth);
    if (take('[')) return items(to, Literal::Kind::kList, ']', depth);
    if (take('(')) return items(to, Literal::Kind::kTuple, ')', depth);
    if (more() && is_digit(text_[at_])) return number(to);
    to->kind = Literal::Kind::kTruth;
    to->number = 1;
    if (take("True")) return true;
    to->number = 0;
    return take("False") || fail("a value expected");
  }

  bool items(Literal* to, Literal::Kind kind, char end, int depth) {
    to->kind = kind;
    bool comma = true;  // in front of the first there is none
    while (true) {
      skip_space();
      if (take(end)) break;
      if (!comma) return fail("a comma expected");
      if (!value(&to->items.emplace_back(), depth + 1)) return false;
      skip_space();
      if (kind == Literal::Kind::kDict) {
        if (!take(':')) return fail("a colon expected");
        skip_space();
        if (!value(&to->items.emplace_back(), depth + 1)) return false;
        skip_space();
      }
      comma = take(',');
    }
    // "(3)" is a number in brackets, not a tuple; and "()" is one.
    if (kind == Literal::Kind::kTuple && to->items.size() == 1 && !comma)
      return fail("a tuple of one without its comma");
    return true;
  }

  bool number(Literal* to) {
    to->kind = Literal::Kind::kNumber;
    const bool zero = next_is('0');
    std::uint64_t number = 0;
    while (more() && is_digit(text_[at_])) {
      number = number * 10 + static_cast<std::uint64_t>(text_[at_] - '0');
      if (number > INT64_MAX) return fail("a number of 2**63 or more");
      ++at_;
      if (zero && more() && is_digit(text_[at_])) return fail("a number that begins with 0");
    }
    to->number = number;
    if (long_suffix_) static_cast<void>(take('L'));  // as Python 2 wrote long integers
    return true;
  }

  bool text(Literal* to) {
    to->kind = Literal::Kind::kText;
    const char quote = text_[at_++];
    while (more()) {
      const char c = text_[at_++];
      if (c == quote) return true;
      if (c == '\n' || c == '\0') return fail("a string without its end");
      if (c != '\\') {
        to->text.push_back(c);
      } else if (!escape(&to->text)) {
        return false;
      }
    }
    return fail("a string without its end");
  }

  bool escape(std::string* to) {
    if (!more()) return fail("a string without its end");
    const char c = text_[at_++];
    switch (c) {
      case '\\':
      case '\'':
      case '"':
        to->push_back(c);
        return true;
      case 'n':
        to->push_back('\n');
        return true;
      case 'r':
        to->push_back('\r');
        return true;
      case 't':
        to->push_back('\t');
        return true;
      case 'x':
        return code_point(2, to);
      case 'u':
        return code_point(4, to);
      case 'U':
        return code_point(8, to);
      default:
        return fail("an escape that Python does not write");
    }
  }

  bool code_point(unsigned digits, std::string* to) {
    std::uint32_t code = 0;
    for (unsigned i = 0; i < digits; ++i) {
      if (!more()) return fail("a string without its end");
      const char c = text_[at_++];
      const char lower = static_cast<char>(c | 0x20);
      if (is_digit(c)) {
        code = code << 4U | static_cast<std::uint32_t>(c - '0');
      } else if (lower >= 'a' && lower <= 'f') {
        code = code << 4U | static_cast<std::uint32_t>(lower - 'a' + 10);
      } else {
        return fail("a digit expected");
      }
    }
    if (code > 0x10FFFF || is_surrogate(code)) return fail("no code point");
    append_utf8(code, to);
    return true;
  }

  std::string_view text_;
  bool long_suffix_;
  std::size_t at_ = 0;
  std::string problem_;
};

Error bad_header(const std::string& problem) {
  return {ErrorCode::kBadHeader, "bad .npy header: " + problem};
}

Error check_type(std::string_view type) {
  std::string_view rest = type;
  if (!rest.empty() && (rest[0] == '<' || rest[0] == '>' || rest[0] == '|' || rest[0] == '='))
    rest.remove_prefix(1);
  const char kind = rest.empty() ? '\0' : rest[0];
  if (kind == 'O') {
    return {ErrorCode::kRefused, "holds pickled Python objects (dtype " + quoted(type) +
                                     "), which are not read: unpickling runs what the file says"};
  }
  constexpr std::string_view kKinds = "?biufcmMSUV";
  if (kind == '\0' || kKinds.find(kind) == std::string_view::npos)
    return bad_header("no dtype is called " + quoted(type));
  rest.remove_prefix(1);
  // NumPy's own limit is that of a C int.
  constexpr std::size_t kMaxDigits = 10;
  const std::size_t digits =
      static_cast<std::size_t>(std::find_if_not(rest.begin(), rest.end(), is_digit) - rest.begin());
  if (digits > kMaxDigits) return bad_header("no dtype is called " + quoted(type));
  rest.remove_prefix(digits);
  const bool time = kind == 'm' || kind == 'M';
  const auto of_unit = [](char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || c == 'D' || c == 'M' || c == 'W' || c == 'Y' ||
           c == '/';
  };
  const bool unit = time && rest.size() > 2 && rest.front() == '[' && rest.back() == ']' &&
                    std::all_of(rest.begin() + 1, rest.end() - 1, of_unit);
  if (!rest.empty() && !unit) return bad_header("no dtype is called " + quoted(type));
  return {};
}

bool is_shape(const Literal& value) {
  return value.kind == Literal::Kind::kTuple &&
         std::all_of(value.items.begin(), value.items.end(),
                     [](const Literal& item) { return item.kind == Literal::Kind::kNumber; });
}

bool is_name(const Literal& value) {
  using Kind = Literal::Kind;
  if (value.kind == Kind::kText) return true;
  return value.kind == Kind::kTuple && value.items.size() == 2 &&
         value.items[0].kind == Kind::kText && value.items[1].kind == Kind::kText;
}

Error check_descr(const Literal& descr) {
  using Kind = Literal::Kind;
  if (descr.kind == Kind::kText) return check_type(descr.text);
  if (descr.kind != Kind::kList) return bad_header("descr is no dtype");
  for (const Literal& field : descr.items) {
    const bool is_field = field.kind == Kind::kTuple &&
                          (field.items.size() == 2 || field.items.size() == 3) &&
                          is_name(field.items[0]);
    if (!is_field) return bad_header("a field is not (name, dtype) or (name, dtype, shape)");
    if (Error error = check_descr(field.items[1]); error) return error;
    if (field.items.size() == 3 && !is_shape(field.items[2]))
      return bad_header("the shape of a field is no tuple of sizes");
  }
  return {};
}

}  // namespace

std::string quoted(std::string_view text) {
  constexpr std::size_t kMost = 60;
  std::string to = "'";
  for (const char c : text.substr(0, kMost)) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '\\' || c == '\'') {
      to += {'\\', c};
    } else if (code >= 0x20 && code < 0x7F) {
      to += c;
    } else {
      constexpr std::string_view kHex = "0123456789abcdef";
      to += {'\\', 'x', kHex[code >> 4U], kHex[code & 0xFU]};
    }
  }
  return to + (text.size() > kMost ? "...'" : "'");
}

Error parse_npy_header(std::string_view text, int version, NpyHeader* header) {
  std::string utf8;
  if (version >= 3) {
    if (!is_utf8(text))
      return bad_header("version 3 is in UTF-8, and this is not: " + quoted(text));
  } else if (std::any_of(text.begin(), text.end(), [](char c) { return (c & 0x80) != 0; })) {
    for (const char c : text) append_utf8(static_cast<unsigned char>(c), &utf8);
    text = utf8;
  }
  Literal dict;
  Parser parser(text, version < 3);
  if (!parser.parse(&dict)) return parser.problem();
  if (dict.kind != Literal::Kind::kDict) return bad_header("no dict, but " + quoted(text));

  bool has_descr = false;
  bool has_order = false;
  bool has_shape = false;
  for (std::size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const Literal& key = dict.items[i];
    Literal& value = dict.items[i + 1];
    if (key.kind == Literal::Kind::kText && key.text == "descr" && !has_descr) {
      has_descr = true;
      if (Error error = check_descr(value); error) return error;
      header->descr = std::move(value);
    } else if (key.kind == Literal::Kind::kText && key.text == "fortran_order" && !has_order) {
      has_order = true;
      if (value.kind != Literal::Kind::kTruth)
        return bad_header("fortran_order is neither True nor False");
      header->fortran_order = value.number != 0;
    } else if (key.kind == Literal::Kind::kText && key.text == "shape" && !has_shape) {
      has_shape = true;
      if (!is_shape(value)) return bad_header("shape is no tuple of sizes");
      for (const Literal& item : value.items) header->shape.push_back(item.number);
    } else {
      return bad_header("a key too many: " + quoted(key.text));
    }
  }
  if (!has_descr || !has_order || !has_shape)
    return bad_header("descr, fortran_order or shape is missing in " + quoted(text));
  return {};
}

}  // namespace stook::decode
