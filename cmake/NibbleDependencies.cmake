# Every library that nibble links is found here and nowhere else; docs/dependencies.md says why each was chosen.
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS CXX)
find_package(dnnl REQUIRED)
find_package(CLI11 REQUIRED)
find_package(Eigen3 REQUIRED NO_MODULE)
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash)

# What each module links beside the modules below it.
set(NIBBLE_LIBS_core PUBLIC fmt::fmt PRIVATE spdlog::spdlog_header_only OpenMP::OpenMP_CXX)
set(NIBBLE_LIBS_formats
  PUBLIC nlohmann_json::nlohmann_json
  PRIVATE PkgConfig::PCRE2 PkgConfig::UTF8PROC PkgConfig::XXHASH)
set(NIBBLE_LIBS_inputs PRIVATE JPEG::JPEG PNG::PNG)
set(NIBBLE_LIBS_kernels PRIVATE DNNL::dnnl)
set(NIBBLE_LIBS_ops PRIVATE DNNL::dnnl)
set(NIBBLE_LIBS_report PRIVATE nlohmann_json::nlohmann_json)
set(NIBBLE_LIBS_quant PRIVATE DNNL::dnnl Eigen3::Eigen)
set(NIBBLE_LIBS_cli PRIVATE CLI11::CLI11)
