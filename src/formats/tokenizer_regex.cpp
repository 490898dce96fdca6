#define PCRE2_CODE_UNIT_WIDTH 8
#include "formats/tokenizer_regex.h"

#include "core/error.h"
#include "formats/unicode.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <limits>

namespace nibble {
namespace {

/// Steps a match may take: a run of white space of n characters takes about n in the known patterns, so the limit grows
/// with the text; the constant is for patterns that try several alternatives on a short one.
constexpr std::size_t kMatchSteps = 10'000;
constexpr std::size_t kMatchStepsPerByte = 4;
/// Steps that all matches of one text may take together are bounded by the limit of one match times their number, which
/// a hostile pattern can make quadratic; real patterns compile to a few KiB at most.
constexpr std::size_t kMaxPatternBytes = 16 * 1024;
/// The JIT first runs on 32 KiB of the machine's stack (PCRE2's default); this is for patterns that need more.
constexpr std::size_t kJitStackStart = 64 * 1024;
constexpr std::size_t kJitStackLimit = 8 * 1024 * 1024;
/// Heap of the interpreter in KiB, where there is no JIT.
constexpr std::uint32_t kHeapLimitKib = 64 * 1024;

std::string message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  if (pcre2_get_error_message(code, text.data(), text.size()) < 0) return "error " + std::to_string(code);
  return reinterpret_cast<const char*>(text.data());
}

}  // namespace

void Regex::Free::operator()(pcre2_code* code) const { pcre2_code_free(code); }
void RegexMatcher::Free::operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
void RegexMatcher::Free::operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
void RegexMatcher::Free::operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }

Regex::Regex(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {
  if (pattern.size() > kMaxPatternBytes) {
    fail("{}: the regular expression has {} bytes, more than the {} allowed", where, pattern.size(), kMaxPatternBytes);
  }
  const std::unique_ptr<pcre2_compile_context, void (*)(pcre2_compile_context*)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (!context) fail("no memory to compile a regular expression");
  // As in Oniguruma, for which these files are written: ^ and $ are those of lines, and only \n ends a line.
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE at = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at,
                            context.get()));
  if (!code_) {
    fail("{}: cannot compile the regular expression \"{}\": {} at byte {}", where, to_valid_utf8(pattern),
         message(error), at);
  }
  // Without JIT support on this machine the interpreter does the same, slower.
  jit_ = pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE) == 0;
}

RegexMatcher::RegexMatcher(const Regex& regex)
    : regex_(regex), context_(pcre2_match_context_create(nullptr)), data_(pcre2_match_data_create(1, nullptr)) {
  if (!context_ || !data_) fail("no memory to match a regular expression");
  pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
}

RegexMatcher::~RegexMatcher() = default;

void RegexMatcher::start(std::string_view text, TextRange range) {
  subject_ = text.substr(range.begin, range.end - range.begin);
  base_ = range.begin;
  offset_ = 0;
  last_end_.reset();
  const std::size_t steps = kMatchSteps + kMatchStepsPerByte * subject_.size();
  pcre2_set_match_limit(context_.get(), static_cast<std::uint32_t>(
                                            std::min<std::size_t>(steps, std::numeric_limits<std::uint32_t>::max())));
}

int RegexMatcher::match(std::size_t offset) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(subject_.data());
  if (!regex_.jit_) {
    return pcre2_match(regex_.code_.get(), subject, subject_.size(), offset, PCRE2_NO_UTF_CHECK, data_.get(),
                       context_.get());
  }
  int found = pcre2_jit_match(regex_.code_.get(), subject, subject_.size(), offset, 0, data_.get(), context_.get());
  if (found == PCRE2_ERROR_JIT_STACKLIMIT && !jit_stack_) {
    jit_stack_.reset(pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr));
    if (!jit_stack_) fail("no memory to match a regular expression");
    pcre2_jit_stack_assign(context_.get(), nullptr, jit_stack_.get());
    found = pcre2_jit_match(regex_.code_.get(), subject, subject_.size(), offset, 0, data_.get(), context_.get());
  }
  return found;
}

std::optional<TextRange> RegexMatcher::next() {
  while (offset_ <= subject_.size()) {
    const int found = match(offset_);
    if (found == PCRE2_ERROR_NOMATCH) {
      offset_ = subject_.size() + 1;
      return std::nullopt;
    }
    if (found < 0) {
      fail("{}: the regular expression \"{}\" gave up on a text of {} bytes: {}", regex_.where_,
           to_valid_utf8(regex_.pattern_), subject_.size(), message(found));
    }
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data_.get());
    // \K in a look-around can put the start after the end or before the last match: such a match has no meaning here.
    const std::size_t end = ends[1];
    const std::size_t begin = std::min<std::size_t>(ends[0], end);
    if (begin < last_end_.value_or(0)) {
      fail("{}: the regular expression \"{}\" gives matches that overlap", regex_.where_,
           to_valid_utf8(regex_.pattern_));
    }
    const bool empty = begin == end;
    if (empty) {
      offset_ = end < subject_.size() ? end + utf8_at(subject_, end).length : subject_.size() + 1;
      if (last_end_ == end) continue;
    } else {
      offset_ = end;
    }
    last_end_ = end;
    return TextRange{base_ + static_cast<std::uint32_t>(begin), base_ + static_cast<std::uint32_t>(end)};
  }
  return std::nullopt;
}

}  // namespace nibble
