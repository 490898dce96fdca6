#include "core/cpu.h"

#include "core/error.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace nibble {
namespace {

int scalar_choice() { return 1; }
int avx2_choice() { return 2; }
int amx_choice() { return 3; }

// Puts the instruction set back that the tests run under.
class IsaTest : public testing::Test {
 protected:
  ~IsaTest() override { set_isa(before_); }
  Isa before_ = active_isa();
};

TEST_F(IsaTest, NamesRoundTrip) {
  for (const Isa isa :
       {Isa::scalar, Isa::avx2, Isa::avxvnni, Isa::avx512, Isa::avx512vnni, Isa::avx512bf16, Isa::amx}) {
    EXPECT_EQ(isa_from_name(name_of(isa)), isa);
  }
  EXPECT_FALSE(isa_from_name("avx1024"));
  EXPECT_FALSE(isa_from_name(""));
}

TEST_F(IsaTest, SupportedSetsAreOrderedAndStartWithScalar) {
  const std::vector<Isa> sets = supported_isas();
  ASSERT_FALSE(sets.empty());
  EXPECT_EQ(sets.front(), Isa::scalar);
  EXPECT_TRUE(std::is_sorted(sets.begin(), sets.end()));
  EXPECT_NE(std::find(sets.begin(), sets.end(), active_isa()), sets.end());
}

TEST_F(IsaTest, PickTakesTheBestThatIsAllowed) {
  const auto choose = [] {
    return pick<int()>({{Isa::scalar, scalar_choice}, {Isa::avx2, avx2_choice}, {Isa::amx, amx_choice}})();
  };
  set_isa(Isa::scalar);
  EXPECT_EQ(choose(), 1);
  for (const Isa isa : supported_isas()) {
    set_isa(isa);
    EXPECT_EQ(active_isa(), isa);
    EXPECT_EQ(choose(), isa >= Isa::amx ? 3 : isa >= Isa::avx2 ? 2 : 1) << name_of(isa);
  }
}

TEST_F(IsaTest, PickFindsNothingBelowTheLowest) {
  set_isa(Isa::scalar);
  EXPECT_EQ(pick<int()>({{Isa::avx2, avx2_choice}}), nullptr);
}

TEST_F(IsaTest, ForcingAMissingSetIsAUsageError) {
  for (const Isa isa : {Isa::avx2, Isa::avxvnni, Isa::avx512, Isa::avx512vnni, Isa::avx512bf16, Isa::amx}) {
    if (isa_supported(isa)) continue;
    try {
      set_isa(isa);
      FAIL() << name_of(isa);
    } catch (const UsageError& error) {
      EXPECT_NE(std::string(error.what()).find(name_of(isa)), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("scalar"), std::string::npos) << error.what();
    }
  }
}

TEST(Cpu, SaysWhatTheMachineHas) {
  EXPECT_FALSE(cpu_model().empty());
  EXPECT_GE(usable_cpus(), 1);
  EXPECT_GT(usable_memory_bytes(), std::size_t{1} << 20);
}

}  // namespace
}  // namespace nibble
