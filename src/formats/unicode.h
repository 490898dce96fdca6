// Unicode for the tokenizers: UTF-8, categories, normal forms, lower case. The data is utf8proc's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace nibble {

/// One decoded character: its code point and the bytes that it took. Bytes that are no UTF-8 give `valid` false, the
/// replacement character U+FFFD and the length of the maximal ill-formed part (Unicode 15, section 3.9, "best
/// practice").
struct Utf8Char {
  char32_t code = 0;
  std::uint32_t length = 0;
  bool valid = false;
};

/// The character at `offset`, which must be below text.size().
Utf8Char utf8_at(std::string_view text, std::size_t offset);

/// The offset of the character that ends at `end` (above zero); `text` must be valid UTF-8.
std::size_t utf8_before(std::string_view text, std::size_t end);

/// Appends the UTF-8 form of a code point; a surrogate or a value above U+10FFFF becomes U+FFFD.
void append_utf8(std::string& out, char32_t code);

bool is_valid_utf8(std::string_view text);

/// Characters of valid UTF-8.
std::size_t utf8_length(std::string_view text);

/// The text with every maximal ill-formed part replaced by U+FFFD.
std::string to_valid_utf8(std::string_view text);

/// The property White_Space.
bool is_unicode_space(char32_t code);
/// Categories Nd, Nl and No.
bool is_unicode_number(char32_t code);
/// ASCII punctuation and symbols, and the categories P*: what BERT splits at.
bool is_bert_punctuation(char32_t code);
/// What \w matches in UTS 18: Alphabetic, marks, decimal digits, connector punctuation and the joiners.
bool is_unicode_word(char32_t code);
/// Categories Mn, Mc and Me.
bool is_unicode_mark(char32_t code);
/// Category Mn.
bool is_unicode_nonspacing_mark(char32_t code);
/// Categories Cc, Cf and Co: what BERT drops. Tab and the ends of lines are among them.
bool is_unicode_control(char32_t code);

/// Where the extended grapheme cluster (UAX 29: what a reader takes for one character) that begins at `begin`, below
/// text.size(), ends; `text` must be valid UTF-8 and a cluster begin there.
std::size_t grapheme_end(std::string_view text, std::size_t begin);

enum class NormalForm { nfc, nfd, nfkc, nfkd };

/// The normal form of valid UTF-8 (UAX 15), in time proportional to n log n whatever the text.
std::string normalize_unicode(std::string_view text, NormalForm form);

/// Each character's lower case, without regard to its neighbours (a final sigma is not special), of valid UTF-8.
std::string lowercase_unicode(std::string_view text);

/// Each character's upper case, of valid UTF-8. Of the characters whose upper case is longer only ß (SS) is known here.
std::string uppercase_unicode(std::string_view text);

/// Python's str.title (each run of letters begins with its title case, the rest is lower case) and str.capitalize.
std::string titlecase_unicode(std::string_view text);
std::string capitalize_unicode(std::string_view text);

}  // namespace nibble
